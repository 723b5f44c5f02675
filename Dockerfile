# fundus-vae with JAX for the CPU, or for an NVIDIA GPU: docker build --build-arg JAX=jax[cuda13] .
# This file has not been built yet.
FROM python:3.11-slim
ARG JAX=jax
WORKDIR /app
COPY . .
RUN pip install --no-cache-dir "$JAX" ".[tf,dicom,report,embed]"
# Photographs and runs are mounted here; nothing is written elsewhere.
WORKDIR /data
ENTRYPOINT ["fundus-vae"]
