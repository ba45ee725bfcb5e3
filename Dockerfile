# On the CPU, and with NVIDIA's libraries:
#
#     docker build -t unet_core .
#     docker build -t unet_core --build-arg EXTRAS=scores,report,gpu .
#
# The two commands of README.md, which train on synthetic slices and run the tests:
#
#     docker run -v "$PWD/data:/unet_core/data" -v "$PWD/runs:/unet_core/runs" unet_core
#     docker build -t unet_core_test --target test . && docker run unet_core_test
#
# Other flags go behind the name, such as --flagfile=own_data.flags; with GPUs add --gpus all. `docker stop`
# saves, and the same command goes on.

FROM python:3.11-slim-bookworm AS base
# OpenCV is linked to these.
RUN apt-get update && \
    apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 && \
    rm -rf /var/lib/apt/lists/*
# Written to by whoever `docker run --user` names.
ENV HOME=/tmp
WORKDIR /unet_core
COPY . .

FROM base AS test
RUN python3 -m venv .venv && .venv/bin/pip install --quiet '.[test]'
CMD [".venv/bin/python", "-m", "pytest"]

FROM base
ARG EXTRAS=scores,report
RUN python3 -m venv .venv && .venv/bin/pip install --quiet ".[$EXTRAS]"
ENTRYPOINT [".venv/bin/python", "train_loop.py"]
CMD ["--flagfile=membrane.flags", "--train_steps=400"]
