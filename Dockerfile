# An image with the command `swa`; docs/install.md says how to run it.
#   docker build -t swa .                               for processors
#   docker build -t swa:cuda --build-arg TORCH=cu130 .  for NVIDIA GPUs
ARG PYTHON=3.13

FROM python:${PYTHON}-slim AS build
# The index of torch's builds: cpu, or a CUDA version such as cu130, https://download.pytorch.org/whl
ARG TORCH=cpu
RUN python -m venv /opt/swa
ENV PATH=/opt/swa/bin:$PATH
# Before the sources are copied: a change of them does not download torch again.
RUN pip install --no-cache-dir --index-url "https://download.pytorch.org/whl/${TORCH}" "torch>=2.10" "torchvision>=0.25"
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY recipes recipes
COPY swa_cli swa_cli
# Further parts of swa, such as [timm,jpeg].
ARG EXTRAS=
# hadolint ignore=DL3013
RUN pip install --no-cache-dir ".${EXTRAS}"

FROM python:${PYTHON}-slim
COPY --from=build /opt/swa /opt/swa
# Any user may write to /home/swa, so that `docker run --user` works with every number.
RUN useradd --uid 1000 --no-create-home swa && install -d -m 1777 -o swa /home/swa /work
ENV PATH=/opt/swa/bin:$PATH HOME=/home/swa PYTHONUNBUFFERED=1
USER 1000
WORKDIR /work
ENTRYPOINT ["swa"]
CMD ["--help"]
