// Show the values of a chart at the epoch under the pointer, or chosen with the arrow keys.
'use strict';
for (const chart of document.querySelectorAll('.chart')) {
  const svg = chart.querySelector('svg'), at = chart.querySelector('.at'), reading = chart.querySelector('.reading');
  const {left, width, end, unit, series} = JSON.parse(chart.dataset.values);
  const epochs = [...new Set(series.flatMap(one => one.points.map(point => point[0])))].sort((a, b) => a - b);
  let index = -1;
  const show = () => {
    if (index < 0) return;
    const epoch = epochs[index], x = left + width * epoch / end;
    at.setAttribute('x1', x); at.setAttribute('x2', x); at.style.visibility = 'visible';
    const parts = series.map(one => [one.name, one.points.find(point => point[0] === epoch)]).filter(pair => pair[1]);
    reading.textContent = `epoch ${epoch}: ` + parts.map(([name, point]) => `${name} ${point[2]}${unit}`).join(', ');
  };
  svg.addEventListener('pointermove', event => {
    const box = svg.getBoundingClientRect(), scale = svg.viewBox.baseVal.width / box.width;
    const epoch = ((event.clientX - box.left) * scale - left) / width * end;
    index = epochs.reduce((best, one, i) => Math.abs(one - epoch) < Math.abs(epochs[best] - epoch) ? i : best, 0);
    show();
  });
  svg.addEventListener('keydown', event => {
    const step = {ArrowLeft: -1, ArrowRight: 1}[event.key];
    if (step === undefined) return;
    event.preventDefault();
    index = Math.min(Math.max(index + step, 0), epochs.length - 1);
    show();
  });
}
// Paper cannot be unfolded.
addEventListener('beforeprint', () => document.querySelectorAll('details').forEach(one => { one.open = true; }));
