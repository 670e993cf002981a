"""A task of Fractal that refocuses an OME-Zarr plate"""
