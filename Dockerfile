# GPU image with the same pinned packages: docker build -t cloudless . && docker run --gpus all -v DATA:/data cloudless ...
FROM nvidia/cuda:12.8.1-runtime-ubuntu24.04
RUN apt-get update \
    && apt-get install --no-install-recommends -y python3 python3-venv make git \
    && rm -rf /var/lib/apt/lists/*
WORKDIR /app
COPY requirements.txt .
RUN python3 -m venv /opt/venv && /opt/venv/bin/pip install --no-cache-dir -r requirements.txt
ENV PATH=/opt/venv/bin:$PATH
COPY . .
CMD ["python", "train_reconstruct.py", "--help"]
