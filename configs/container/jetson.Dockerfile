# One station on a Jetson in a container, in place of tools/install-device. NOT BUILT OR RUN YET by its makers: the base
# image is NVIDIA's, for ARM, and needs a Jetson to run. From the checkout, on the Jetson (JetPack 6.1 or 6.2):
#
#   docker build -f configs/container/jetson.Dockerfile -t defect-agent .
#   docker run --rm --runtime nvidia --network host --device /dev/video0 \
#     -v /etc/defect-agent:/etc/defect-agent:ro -v /var/lib/defect-agent:/var/lib/defect-agent \
#     defect-agent check --config /etc/defect-agent/line3.yaml
#   docker run -d --name line3 --restart on-failure ... defect-agent run --config /etc/defect-agent/line3.yaml
#
# `--runtime nvidia` brings the driver, its devices and their groups. The engine lies in the state directory of the
# configuration, so it must be on the host: else every start of a new container compiles it again. An engine that was
# compiled outside fits inside only with the same TensorRT, CUDA and driver; the agent's key has all three.
#
# The base must be of the host's Jetson Linux: 36.x for JetPack 6. Tags: catalog.ngc.nvidia.com, l4t-jetpack.
ARG BASE=nvcr.io/nvidia/l4t-jetpack:r36.4.0

# PyCUDA is built here, against the CUDA that runs it; the compiler stays behind.
FROM ${BASE} AS build
RUN apt-get update && apt-get install -y --no-install-recommends python3-venv python3-dev g++ && \
    rm -rf /var/lib/apt/lists/*
# TensorRT's Python bindings are JetPack's: the environment sees the system's packages.
RUN python3 -m venv --system-site-packages /opt/defect-agent
ENV PATH=/usr/local/cuda/bin:$PATH
RUN printf 'CUDA_ROOT = "/usr/local/cuda"\nCUDADRV_LIB_DIR = ["/usr/local/cuda/lib64/stubs"]\nCUDA_ENABLE_CURAND = False\n' \
      > /root/.aksetup-defaults.py && \
    /opt/defect-agent/bin/pip install --no-cache-dir --no-binary pycuda 'pycuda>=2022.1'
COPY pyproject.toml README.md LICENSE /src/
COPY agent /src/agent
COPY optimize /src/optimize
RUN /opt/defect-agent/bin/pip install --no-cache-dir '/src[jetson]'

FROM ${BASE}
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && \
    rm -rf /var/lib/apt/lists/* && \
    useradd --system --user-group --no-create-home --home-dir /var/lib/defect-agent --groups video defect-agent
COPY --from=build /opt/defect-agent /opt/defect-agent
ENV PATH=/opt/defect-agent/bin:$PATH ORT_DISABLE_TELEMETRY=1
USER defect-agent
WORKDIR /var/lib/defect-agent
ENTRYPOINT ["defect-agent"]
CMD ["--help"]
