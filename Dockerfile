# A slim image for computers without a graphics card: PyTorch without CUDA, and the packages for OME-Zarr and plates
# docker build -t refocus . && docker run --rm --user "$(id -u):$(id -g)" -v "$PWD":/data refocus run "plate/*.tif" --out refocused
FROM python:3.12-slim
COPY settings.ini setup.py README.md LICENSE MANIFEST.in /source/
COPY refocus_nbdev /source/refocus_nbdev
RUN pip install --no-cache-dir torch torchvision --index-url https://download.pytorch.org/whl/cpu \
    && pip install --no-cache-dir '/source[zarr,plates]' \
    && rm -r /source
ENV MPLCONFIGDIR=/tmp
WORKDIR /data
ENTRYPOINT ["refocus"]
