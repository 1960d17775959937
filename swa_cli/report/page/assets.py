"""The style and the script of the page; colours are variables with a light and a dark value.

The script does one thing: it says the values of a chart at the epoch that is pointed at, or walked to with the arrow
keys. Without it, the page lacks nothing else.
"""

from __future__ import annotations

# Nothing is fetched from anywhere, whatever a name in a recipe says.
POLICY = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"

STYLE = """
:root { color-scheme: light dark; --back: #fff; --card: #f6f7f8; --text: #1b1f23; --soft: #5b6570; --rule: #d5dade;
  --train: #777; --val: #0072b2; --a0: #c44f00; --a1: #00805a; --a2: #a8487f; --a3: #a06a00; --a4: #2a7fb0;
  --phase: #f3e9dd; --good: #00704e; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --back: #14171a; --card: #1e2327; --text: #e6e9ec; --soft: #9aa5b0;
  --rule: #3a424a; --train: #a9b0b6; --val: #56b4e9; --a0: #ff8a4c; --a1: #3fd0a4; --a2: #e59ac4; --a3: #e6b34d;
  --a4: #8ecdf2; --phase: #2e2a24; --good: #3fd0a4; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; padding: 1rem clamp(.75rem, 3vw, 2rem) 3rem; max-width: 1400px; background: var(--back);
  color: var(--text); font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.5rem; margin: .5rem 0; } h2 { font-size: 1.2rem; margin: 2rem 0 .5rem; }
h3 { font-size: 1rem; margin: 1.25rem 0 .4rem; }
.soft, caption, figcaption { color: var(--soft); font-size: .875rem; }
.runs { display: grid; gap: 1.5rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 30rem), 1fr)); }
.runs > article { min-width: 0; }
.pair { display: grid; gap: 1rem; grid-template-columns: repeat(auto-fit, minmax(min(100%, 21rem), 1fr)); }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .9rem; }
caption { text-align: left; padding-bottom: .3rem; }
th, td { padding: .25rem .6rem; text-align: right; border-bottom: 1px solid var(--rule); white-space: nowrap; }
th:first-child, td:first-child, .words td, .words th { text-align: left; }
.words td { white-space: normal; }
tr.difference td { color: var(--soft); } td.better { color: var(--good) !important; font-weight: 600; }
td.worse { color: var(--bad) !important; font-weight: 600; }
dl { display: grid; grid-template-columns: minmax(5rem, max-content) minmax(0, 1fr); gap: .15rem 1rem; margin: 0; }
dt { color: var(--soft); } dd { margin: 0; }
pre { background: var(--card); border: 1px solid var(--rule); border-radius: 6px; padding: .75rem; margin: .5rem 0;
  font-size: .85rem; white-space: pre-wrap; }
figure { margin: 0; min-width: 0; } figure img { width: 100%; height: auto; background: #fff; border-radius: 6px; }
.chart svg { width: 100%; height: auto; display: block; touch-action: pan-y; }
.chart svg:focus-visible { outline: 2px solid var(--val); }
.chart text { fill: var(--soft); font: 11px system-ui, sans-serif; }
.chart .axis { stroke: var(--soft); } .chart .grid { stroke: var(--rule); stroke-width: .6; }
.chart .phase { fill: var(--phase); } .chart .at { stroke: var(--text); stroke-width: .8; visibility: hidden; }
.key { display: flex; flex-wrap: wrap; gap: 0 1rem; font-size: .85rem; }
.chart .key svg { width: 28px; height: 12px; display: inline-block; vertical-align: middle; }
.reading { min-height: 3em; margin: 0; font-size: .875rem; font-variant-numeric: tabular-nums; }
details { margin: .75rem 0; } summary { cursor: pointer; font-weight: 600; }
"""

SCRIPT = """
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
"""
