"""Do two versions of the package make the same of the same files, but for what a result says of itself?

python tests/compare_versions.py OLD_CHECKOUT NEW_CHECKOUT

Input files of many kinds are made of the simulated sample plate of the new checkout. Each version is run on them by the
same commands, and every file that comes out is compared. Not compared is what says which version made a file: the tag
Software of a TIFF, our comment in OME-XML, our line in ImageJ's Info, the text Software of a PNG, the attribute
refocus_nbdev of a Zarr, and the version in a report and in the card of a model.

Ends with 1 if anything else differs, and with 2 if it cannot compare.
"""
import argparse
import base64
import csv
import io
import itertools
import json
import math
import os
import re
import shlex
import shutil
import struct
import subprocess
import sys
import tempfile
import time
import warnings
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
import zarr
from PIL import Image, PngImagePlugin
from safetensors import safe_open
from scipy.ndimage import gaussian_filter

UM = 0.645
GREY = dict(photometric='minisblack', metadata=None)
SIZED = dict(resolution=(1e4 / UM, 1e4 / UM), resolutionunit='CENTIMETER')


# The images that input files are made of

class Sample:
    "The fields of a sample plate"

    def __init__(self, folder):
        self.folder = folder

    def field(self, number, z=10):
        "A field at a plane, 16 bits; that of plane 16 is in focus"
        files = sorted(self.folder.glob(f'BBBC006_v1_images_z_{z:02d}/*.tif'))
        return tifffile.imread(files[number])

    def fields(self, *shape):
        "An array of fields with other axes before theirs"
        planes = [self.field(i % 8, (10, 5, 1, 32)[i // 8 % 4]) for i in range(math.prod(shape))]
        return np.stack(planes).reshape(*shape, *planes[0].shape)

    def mosaic(self, height, width):
        "Fields side by side, cut to size"
        rows = [np.hstack([self.field((5 * i + j) % 16) for j in range(5)]) for i in range(5)]
        return np.vstack(rows)[:height, :width]

    def stack(self):
        "A field that is farther and farther out of focus"
        sharp = self.field(0, 16).astype(np.float32)
        return np.stack([gaussian_filter(sharp, s).astype(np.uint16) for s in (0, 2, 4, 6, 8, 10)])


def same(x):
    return x


def eight(x):
    return (x >> 4).astype(np.uint8)


def floats(x):
    return x.astype(np.float32) / 7


def odd(x):
    return x[:251, :243]


def flat(x):
    return np.full_like(x, 300)


def saturated(x):
    return np.clip(x.astype(int) * 60, 0, 65535).astype(np.uint16)


def saturated_eight(x):
    return np.clip(x // 3, 0, 255).astype(np.uint8)


def ramp():
    "A colour map that is no plain grey"
    return np.stack([np.arange(256) * 257, np.arange(256)[::-1] * 257, np.full(256, 999)]).astype(np.uint16)


def resolution(um):
    return dict(resolution=(1e4 / um, 1e4 / um), resolutionunit='CENTIMETER')


def tag(code, text):
    return code, 2, 0, text, True


# Plain TIFFs of one page: what is done to a field, and how it is written

PLAIN = {
    'strips': (same, dict(rowsperstrip=16)),
    'one_strip': (same, dict(rowsperstrip=256)),
    'odd_strips': (odd, dict(rowsperstrip=100, compression='zlib')),
    'tiles': (same, dict(tile=(64, 64))),
    'odd_tiles': (odd, dict(tile=(64, 96), compression='zlib')),
    'lzw': (same, dict(compression='lzw')),
    'lzw_predictor': (same, dict(compression='lzw', predictor=True, rowsperstrip=32)),
    'zlib': (same, dict(compression='zlib')),
    'zlib_predictor_tiles': (same, dict(compression='zlib', predictor=True, tile=(128, 128))),
    'zstd': (same, dict(compression='zstd')),
    'lzma': (same, dict(compression='lzma')),
    'packbits': (eight, dict(compression='packbits')),
    'jpeg': (eight, dict(compression='jpeg')),
    'big_endian': (same, dict(byteorder='>')),
    'big_endian_tiles': (same, dict(byteorder='>', compression='zlib', predictor=True, tile=(64, 64))),
    'white': (same, dict(photometric='miniswhite')),
    'white_eight_tiles': (eight, dict(photometric='miniswhite', tile=(64, 64), compression='lzw')),
    'white_float': (floats, dict(photometric='miniswhite')),
    'bigtiff': (same, dict(bigtiff=True, tile=(64, 64))),
    'eight': (eight, {}),
    'float': (floats, {}),
    'float_predictor': (floats, dict(compression='zlib', predictor=True)),
    'palette': (eight, dict(photometric='palette', colormap=ramp())),
    'tagged': (same, dict(software='Acquisition 3.1', datetime='2024:02:03 04:05:06', description='well A01, 30 ms',
                          extratags=[tag(315, 'someone'), tag(316, 'microscope 2'), tag(33432, 'CC0'),
                                     (65000, 3, 4, (1, 2, 3, 4), True), (65001, 12, 1, 3.25, True)])),
    'no_size': (same, dict(resolution=None)),
    'for_printing': (same, dict(resolution=(300, 300), resolutionunit='INCH')),
    'fine': (lambda x: np.kron(x, np.ones((2, 2), np.uint16)), resolution(UM / 2)),
    'coarse': (same, resolution(2 * UM)),
    'nearly': (same, resolution(0.6)),
    'far_coarser': (same, resolution(20)),
    'constant': (flat, {}),
    'saturated': (saturated, {}),
    'saturated_eight': (saturated_eight, {}),
}


def write_plain(folder, sample):
    "The files of `PLAIN`"
    for i, (name, (change, how)) in enumerate(PLAIN.items()):
        how = {k: v for k, v in {**GREY, **SIZED, **how}.items() if v is not None or k == 'metadata'}
        tifffile.imwrite(folder / f'{name}.tif', change(sample.field(i % 16)), **how)


def write_pages(folder, sample):
    "Plain TIFFs of several pages"
    with tifffile.TiffWriter(folder / 'pages_of_several_sizes.tif') as out:
        for i, x in enumerate((sample.field(0), sample.field(1)[:200], odd(sample.field(2)))):
            out.write(x, **GREY, **SIZED, description=f'page {i}', compression='zlib' if i else None)
    with tifffile.TiffWriter(folder / 'two_pages.tif') as out:
        for x in sample.fields(2):
            out.write(x, **GREY, **SIZED, contiguous=False)
    shaped = dict(SIZED, photometric='minisblack', metadata={'axes': 'ZYX'})
    tifffile.imwrite(folder / 'volume.tif', sample.fields(3), **shaped)
    shaped.update(metadata={'axes': 'CZYX'}, compression='zlib')
    tifffile.imwrite(folder / 'channels.tif', sample.fields(2, 3), **shaped)
    shaped.update(metadata={}, compression=None)
    tifffile.imwrite(folder / 'one_page_for_all.tif', sample.fields(3), truncate=True, **shaped)


def write_levels(folder, sample):
    "Plain TIFFs that hold smaller pictures of their own"
    x = sample.mosaic(512, 512)
    colour = np.stack([eight(x[::4, ::4])] * 3, -1)
    with tifffile.TiffWriter(folder / 'reduced_pages.tif') as out:
        for k in (1, 2, 4):
            out.write(x[::k, ::k], **GREY, **SIZED, tile=(128, 128), subfiletype=int(k > 1), compression='lzw')
    with tifffile.TiffWriter(folder / 'reduced_in_subifds.tif') as out:
        out.write(x, **GREY, **SIZED, tile=(128, 128), subifds=2)
        for k in (2, 4):
            out.write(x[::k, ::k], **GREY, tile=(128, 128), subfiletype=1, compression='zlib')
    with tifffile.TiffWriter(folder / 'colour_beside.tif') as out:
        out.write(x, **GREY, **SIZED)
        out.write(colour, photometric='rgb', metadata=None, compression='zlib')


# ImageJ's TIFFs

def imagej(path, x, byteorder=None, truncate=False, **metadata):
    "Write one"
    tifffile.imwrite(path, x, imagej=True, byteorder=byteorder, truncate=truncate, resolution=(1 / UM, 1 / UM),
                     metadata={'unit': 'um', **metadata})


def write_imagej(folder, sample):
    "Stacks with all that ImageJ keeps beside the pixels"
    labels = [f't{t} z{z} c{c}' for t in range(2) for z in range(3) for c in range(2)]
    luts = [np.stack([np.arange(256) * (c == i) for i in range(3)]).astype(np.uint8) for c in range(2)]
    imagej(folder / 'hyperstack.tif', sample.fields(2, 3, 2), axes='TZCYX', Labels=labels, mode='composite', LUTs=luts,
           Info='Exposure: 30 ms\nDye: Hoechst\n', Ranges=(100.0, 3000.0, 90.0, 2000.0), spacing=2.0, finterval=60.0,
           loop=False)
    imagej(folder / 'single.tif', sample.field(3), axes='YX', min=100.0, max=3000.0)
    imagej(folder / 'little_endian.tif', sample.fields(3), byteorder='<', axes='TYX', Info='without an end of line')
    imagej(folder / 'overlays.tif', eight(sample.fields(2)), axes='CYX', ROI=b'Iout' + bytes(60),
           Overlays=[b'Iout' + bytes(68)])
    imagej(folder / 'float_stack.tif', floats(sample.fields(2)), axes='ZYX', unit='micron')
    imagej(folder / 'one_page_for_all.tif', sample.fields(4), truncate=True, axes='ZYX', Info='large\n')
    imagej(folder / 'constant_channel.tif', np.stack([sample.field(4), flat(sample.field(4))]), axes='CYX')


# OME-TIFFs

def about(*names, um=UM, **more):
    "OME metadata of an image with named channels"
    size = {f'PhysicalSize{a}': um for a in 'XY'}
    units = {f'PhysicalSize{a}Unit': 'µm' for a in 'XY'}
    return {**size, **units, 'Channel': {'Name': list(names)}, **more}


def write_ome(folder, sample):
    "OME-TIFFs as tifffile writes them"
    grey, x = dict(ome=True, photometric='minisblack'), sample.fields(2)
    tifffile.imwrite(folder / 'channels.ome.tif', x, **grey, metadata=about('DNA', 'Actin', axes='CYX'))
    tifffile.imwrite(folder / 'greek.ome.tif', x, **grey, metadata=about('µ-DNA', 'β-tubulin', axes='CYX'))
    tifffile.imwrite(folder / 'big_stack.ome.tif', sample.fields(2, 2, 2), bigtiff=True, compression='zlib', **grey,
                     metadata=about('DNA', 'ER', axes='TZCYX', PhysicalSizeZ=2.0, PhysicalSizeZUnit='µm'))
    tifffile.imwrite(folder / 'float.ome.tif', floats(sample.field(5)), **grey, metadata=about('DNA', axes='YX'))
    tifffile.imwrite(folder / 'no_size.ome.tif', sample.field(6), **grey, metadata={'axes': 'YX'})
    with tifffile.TiffWriter(folder / 'two_images.ome.tif', ome=True) as out:
        out.write(x, photometric='minisblack', metadata=about('DNA', 'Actin', axes='CYX', Name='first'))
        out.write(x[:, :200], photometric='minisblack', metadata=about('Actin', 'DNA', axes='CYX'))


def write_pyramids(folder, sample):
    "OME-TIFFs with smaller levels"
    x = np.stack([sample.mosaic(512, 600), sample.mosaic(600, 512).T])
    for name, how in {'pyramid': {}, 'pyramid_zlib': dict(compression='zlib', predictor=True)}.items():
        with tifffile.TiffWriter(folder / f'{name}.ome.tif', ome=True) as out:
            how = dict(how, photometric='minisblack', tile=(128, 128))
            out.write(x, **how, subifds=2, metadata=about('DNA', 'Actin', axes='CYX'))
            for k in (2, 4):
                out.write(x[:, ::k, ::k], **how, subfiletype=1)


def own_xml(folder, x, change, name):
    "An OME-TIFF whose XML is changed; `name` is that of the file"
    made = io.BytesIO()
    tifffile.imwrite(made, x, ome=True, photometric='minisblack', metadata=about('DNA', 'Actin', axes='CYX'))
    made.seek(0)
    with tifffile.TiffFile(made) as tif:
        xml = tif.ome_metadata
    with tifffile.TiffWriter(folder / name) as out:
        for i, plane in enumerate(x):
            out.write(plane, **GREY, description=change(xml).encode() if i == 0 else None, contiguous=False)


ANNOTATED = '''<StructuredAnnotations><MapAnnotation ID="Annotation:0" Namespace="lab">
<Value><M K="dye">Hoechst é</M></Value></MapAnnotation>
<CommentAnnotation ID="Annotation:1"><Value>a &lt; b</Value></CommentAnnotation></StructuredAnnotations>
<ROI ID="ROI:0"><Union><Point ID="Shape:0" X="3" Y="4"/></Union></ROI></OME>'''


def with_annotations(xml):
    said = xml.replace('</Image>', '<AnnotationRef ID="Annotation:0"/></Image>', 1)
    return said.replace('</OME>', ANNOTATED)


def with_prefix(xml):
    return re.sub(r'<(/?)(?=[A-Z])', r'<\1ome:', xml).replace('xmlns=', 'xmlns:ome=')


def of_2015(xml):
    return xml.replace('2016-06', '2015-01')


def elsewhere(xml):
    said = '<BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:1"/>'
    return re.sub(r'(<OME[^>]*>).*', rf'\1{said}</OME>', xml, flags=re.S)


def second_description(path):
    "Turn the tag Make of a little-endian TIFF into a second ImageDescription, as MicroManager writes it"
    data = bytearray(path.read_bytes())
    at = data.index(struct.pack('<HH', 271, 2))
    data[at:at + 2] = struct.pack('<H', 270)
    path.write_bytes(data)


def write_odd_ome(folder, sample):
    "OME-TIFFs of other writers"
    x = sample.fields(2)
    changes = dict(annotated=with_annotations, prefix=with_prefix, of_2015=of_2015, elsewhere=elsewhere)
    for name, change in changes.items():
        own_xml(folder, x, change, f'{name}.ome.tif')
    with tifffile.TiffFile(folder / 'channels.ome.tif') as tif:
        xml = tif.ome_metadata.encode()
    with tifffile.TiffWriter(folder / 'two_descriptions.ome.tif', byteorder='<') as out:
        out.write(x[0], **GREY, description=xml, extratags=[tag(271, 'ImageJ=1.52\nunit=um\n')])
        out.write(x[1], **GREY)
    second_description(folder / 'two_descriptions.ome.tif')


# PNGs

def write_pngs(folder, sample):
    "PNGs with and without words"
    words = PngImagePlugin.PngInfo()
    words.add_text('Title', 'A01')
    words.add_text('Comment', 'a long one ' * 30, zip=True)
    words.add_itxt('Author', 'Zoë', 'en', 'Author')
    words.add_text('Software', 'Acquisition 3.1')
    Image.fromarray(eight(sample.field(7))).save(folder / 'eight.png')
    Image.fromarray(sample.field(8)).save(folder / 'sixteen.png')
    Image.fromarray(sample.field(9)).save(folder / 'words.png', pnginfo=words, dpi=(300, 300))
    Image.fromarray(eight(odd(sample.field(10)))).save(folder / 'words_eight.png', pnginfo=words, gamma=0.45)
    Image.fromarray(flat(sample.field(0))).save(folder / 'constant.png')


# OME-Zarrs

def axes_of(letters):
    kinds = dict(t=dict(type='time'), c=dict(type='channel'))
    return [dict(name=a, **kinds.get(a, dict(type='space', unit='micrometer'))) for a in letters]


def zarr_image(group, x, letters, names=(), levels=2, **how):
    "Write an image of some levels into a group"
    sets = []
    for i in range(levels):
        size = [UM * 2 ** i if a in 'yx' else 1.0 for a in letters]
        sets.append(dict(path=str(i), coordinateTransformations=[dict(type='scale', scale=size)]))
        level = x[..., ::2 ** i, ::2 ** i]
        array = group.create_array(str(i), shape=level.shape, dtype=level.dtype, **{'chunks': chunks(x), **how})
        array[...] = level
    said = dict(multiscales=[dict(name='image', axes=axes_of(letters), datasets=sets)])
    if names:
        said['omero'] = dict(channels=[dict(label=n, color='FFFFFF') for n in names])
    say(group, said)


def chunks(x):
    return (*[1] * (x.ndim - 2), 64, 96)


def say(group, said):
    "OME attributes as version 0.5 has them, or 0.4"
    if group.metadata.zarr_format == 3:
        group.attrs['ome'] = dict(said, version='0.5')
    else:
        images = [dict(o, version='0.4') for o in said.get('multiscales', ())]
        group.attrs.update(dict(said, multiscales=images) if images else said)


SLASHES = dict(chunk_key_encoding=dict(name='v2', separator='/'))


def plate(root, sample, **how):
    "Wells and fields of a plate"
    wells = 'A/1', 'B/2'
    say(root, dict(plate=dict(columns=[dict(name='1'), dict(name='2')], rows=[dict(name='A'), dict(name='B')],
                              wells=[dict(path=w, rowIndex=i, columnIndex=i) for i, w in enumerate(wells)])))
    for i, w in enumerate(wells):
        well = root.create_group(w)
        say(well, dict(well=dict(images=[dict(path='0'), dict(path='1')])))
        for j in range(2):
            zarr_image(well.create_group(str(j)), sample.fields(2, 2)[i, j:j + 1], 'cyx', ['DNA'], **how)


def write_zarrs(folder, sample):
    "OME-Zarrs of versions 0.4 and 0.5"
    def new(name, version):
        return zarr.open_group(str(folder / f'{name}.zarr'), mode='w', zarr_format=version)
    zarr_image(new('version_04', 2), sample.fields(2), 'cyx', ['DNA', 'Actin'], **SLASHES)
    zarr_image(new('dots_04', 2), sample.fields(1, 2), 'tzyx', compressors=None)
    zarr_image(new('version_05', 3), sample.fields(2), 'cyx', ['DNA', 'Actin'], levels=3)
    zarr_image(new('gzip_05', 3), eight(sample.field(0)), 'yx', compressors=zarr.codecs.GzipCodec())
    zarr_image(new('shards_05', 3), sample.fields(1, 2, 2), 'tczyx', ['DNA', 'ER'], shards=(1, 1, 2, 128, 128),
               chunks=(1, 1, 1, 64, 64))
    zarr_image(new('float_05', 3), floats(sample.field(0)), 'yx')
    zarr_image(new('consolidated_05', 3), sample.field(1), 'yx')
    zarr_image(new('consolidated_04', 2), sample.field(2), 'yx')
    for version in ('04', '05'):
        with warnings.catch_warnings(action='ignore'):
            zarr.consolidate_metadata(str(folder / f'consolidated_{version}.zarr'))
    plate(new('plate_04', 2), sample, **SLASHES)
    plate(new('plate_05', 3), sample)
    several = new('several_05', 3)
    for i in range(2):
        zarr_image(several.create_group(str(i)), sample.fields(2)[i], 'yx')
    labelled = new('labels_05', 3)
    zarr_image(labelled, sample.field(3), 'yx')
    zarr_image(labelled.create_group('labels').create_group('nuclei'), (sample.field(3) > 500).astype(np.uint16), 'yx')


# Files that are larger than a tile, files that are refused, and lists

def write_large(folder, sample):
    "Images that are computed in several tiles of 1024 px, the smallest that the models have"
    x = sample.mosaic(1250, 1100)
    tifffile.imwrite(folder / 'tiles.tif', x, tile=(256, 256), compression='zlib', **GREY, **SIZED)
    tifffile.imwrite(folder / 'strips.tif', x, **GREY, **resolution(0.6))
    tifffile.imwrite(folder / 'eight.tif', eight(x), tile=(64, 64), **GREY, **SIZED)
    zarr_image(zarr.open_group(str(folder / 'large.zarr'), mode='w', zarr_format=3), x, 'yx')


def write_refused(folder, sample):
    "What cannot be refocused"
    x = sample.field(0)
    tifffile.imwrite(folder / 'colour.tif', np.stack([eight(x)] * 3, -1), photometric='rgb')
    tifffile.imwrite(folder / 'nan.tif', np.where(x > 3000, np.nan, floats(x)), photometric='minisblack')
    tifffile.imwrite(folder / 'deep.tif', x.astype(np.uint32), photometric='minisblack')
    tifffile.imwrite(folder / 'not_square.ome.tif', x, photometric='minisblack',
                     metadata={'PhysicalSizeX': 0.6, 'PhysicalSizeY': 1.2, 'axes': 'YX'})
    tifffile.imwrite(folder / 'whole.tif', x, compression='zlib', **GREY)
    data = (folder / 'whole.tif').read_bytes()
    (folder / 'cut.tif').write_bytes(data[:len(data) // 2])
    (folder / 'empty.tif').write_bytes(b'')
    Image.fromarray(eight(x)).convert('LA').save(folder / 'transparent.png')
    Image.fromarray(eight(x)).convert('1').save(folder / 'mask_of_one_bit.png')


def write_lists(folder, sample):
    "Tables of files, of distances and of groups"
    names = 'strips', 'tiles', 'float', 'eight', 'white'
    files = sorted(sample.folder.glob('BBBC006_v1_images_z_05/*.tif'))
    tables = {
        'files': [['file'], *([f'../plain/{n}.tif'] for n in names)],
        'distances': [['file', 'defocus_um'], *([f'{n}.tif', 4 * i] for i, n in enumerate(names, 1))],
        'groups': [['file', 'group'], *([f.name, i] for i, f in enumerate(files))],
    }
    for name, rows in tables.items():
        with open(folder / f'{name}.csv', 'w', newline='') as f:
            csv.writer(f).writerows(rows)


def write_stacks(folder, sample):
    "Stacks through focus"
    imagej(folder / 'stack.tif', sample.stack(), axes='ZYX')


WRITERS = {
    'plain': [write_plain, write_pages, write_levels],
    'imagej': [write_imagej],
    'ome': [write_ome, write_pyramids, write_odd_ome],
    'png': [write_pngs],
    'zarr': [write_zarrs],
    'large': [write_large],
    'refused': [write_refused],
    'lists': [write_lists],
    'stacks': [write_stacks],
}


def write_inputs(folder, sample):
    "All input files, in folders by their kinds, and a copy of the sample plate"
    for kind, writers in WRITERS.items():
        (folder / kind).mkdir(parents=True)
        for write in writers:
            write(folder / kind, sample)
    shutil.copytree(sample.folder, folder / 'plate')
    return len(units(folder)) - len(units(folder / 'plate'))


# What both versions are asked to do: names, which are those of output folders too, and arguments. IN is the folder of
# the inputs, FAST a choice of model

RUNS = {
    'plain': 'IN/plain FAST',
    'plain_again': 'IN/plain FAST --out plain',
    'plain_halves': 'IN/plain FAST --uncertainty',
    'imagej': 'IN/imagej FAST --uncertainty',
    'ome': 'IN/ome FAST --uncertainty',
    'png': 'IN/png FAST --uncertainty',
    'png_sized': 'IN/png FAST --pixel-um 0.5',
    'zarr': 'IN/zarr FAST --uncertainty',
    'refused': 'IN/refused FAST',
    'strict': 'IN/plain FAST --strict',
    'nuclei': 'IN/plain/strips.tif IN/plain/fine.tif IN/imagej/single.tif IN/ome/channels.ome.tif IN/png/words.png '
              'IN/zarr/version_05.zarr --model nuclei --uncertainty',
    'general': 'IN/plain/tiles.tif IN/ome/channels.ome.tif IN/plain/coarse.tif --model general',
    'channel_by_name': 'IN/ome/channels.ome.tif IN/ome/two_images.ome.tif IN/ome/pyramid.ome.tif '
                       'IN/zarr/version_04.zarr IN/zarr/version_05.zarr FAST --channel dna --uncertainty',
    'channel_by_number': 'IN/imagej/hyperstack.tif IN/ome/greek.ome.tif IN/plain/channels.tif FAST --channel 2',
    'axes': 'IN/plain/two_pages.tif IN/plain/volume.tif FAST --axes CYX --channel 1',
    'axes_of_zarr': 'IN/zarr/dots_04.zarr FAST --axes CZYX',
    'axes_that_do_not_fit': 'IN/plain/strips.tif IN/plain/volume.tif FAST --axes TYX',
    'pixel_um': 'IN/plain/no_size.tif IN/plain/strips.tif IN/ome/no_size.ome.tif IN/zarr/float_05.zarr FAST '
                '--pixel-um 0.4 --uncertainty',
    'told': 'IN/plain/strips.tif IN/imagej/hyperstack.tif IN/zarr/version_05.zarr FAST --defocus-um 12 --uncertainty',
    'told_by_table': 'IN/lists/files.csv FAST --defocus-um IN/lists/distances.csv',
    'scale_from': 'IN/ome/channels.ome.tif IN/ome/annotated.ome.tif FAST --scale-from IN/ome/pyramid.ome.tif',
    'large': 'IN/large FAST --tile 1024 --uncertainty',
    'tile_too_small': 'IN/large FAST --tile 512',
    'large_at_once': 'IN/large FAST',
    'blur': 'IN/plain/strips.tif IN/plain/odd_tiles.tif IN/png/eight.png FAST --blur-per-um 0.25 --uncertainty',
    'twice': 'plain/tagged.tif plain/white.tif imagej/hyperstack.tif imagej/little_endian.tif ome/annotated.ome.tif '
             'ome/prefix.ome.tif ome/of_2015.ome.tif png/words.png zarr/version_04.zarr zarr/version_05.zarr FAST',
    'in_json': 'IN/png IN/zarr FAST --json',
    'dry': 'IN FAST --recursive --dry-run --json',
    'recursive': 'IN/zarr IN/plate/BBBC006_v1_images_z_05 FAST --recursive',
    'out_of_place': 'IN/plain FAST --out ../inputs/plain',
}

OTHERS = {
    'score': 'score IN/plain IN/zarr FAST --out score.csv --tiles score_tiles.csv',
    'score_pictures': 'score IN/png IN/imagej FAST --out score_png.csv --pictures score_pictures',
    'score_plate': 'score IN/plate/BBBC006_v1_images_z_05 --out score_plate.csv --pictures plate_pictures '
                   '--defocus-um 22',
    'score_stack': 'score IN/stacks FAST --step-um 4 --out score_stack.csv',
    'score_channel': 'score IN/ome/channels.ome.tif FAST --channel DNA --pixel-um 0.5 --blur-per-um 0.25 '
                     '--out score_channel.csv',
    'trust': 'trust IN/plain plain FAST --out trust.csv --suspects suspects.csv',
    'trust_pictures': 'trust IN/imagej imagej FAST --out trust_imagej.csv --pictures trust_pictures',
    'trust_ome': 'trust IN/ome ome FAST --out trust_ome.csv --suspects suspects_ome.csv',
    'trust_zarr': 'trust IN/zarr zarr FAST --out trust_zarr.csv',
    'trust_channel': 'trust IN channel_by_name FAST --out trust_channel.csv',
    'fields': 'run IN/plate/BBBC006_v1_images_z_05 FAST --out fields',
    'evaluate': 'evaluate fields IN/plate --input IN/plate/BBBC006_v1_images_z_05 --labels IN/plate --out report',
    'evaluate_briefly': 'evaluate fields IN/plate --out report_without --no-nuclei --groups IN/lists/groups.csv',
    'evaluate_dry': 'evaluate fields IN/plate --dry-run',
    'check': 'check IN/plate --out check',
    'check_sharpest': 'check IN/plate --planes 1,5 --target sharpest --out check_sharpest',
    'calibrate': 'calibrate IN/plate/BBBC006_v1_images_z_05 IN/plate FAST --groups IN/lists/groups.csv '
                 '--out calibrated.safetensors',
    'calibrated': 'run IN/plain/strips.tif --model calibrated.safetensors --uncertainty --out calibrated',
    'train': 'train IN/plate --planes 10 --epochs 1 --out trained.safetensors --log epochs.csv',
    'demo': 'demo FAST --out demo',
    'info': 'info IN/plain IN/imagej IN/ome IN/png IN/zarr/* IN/refused',
    'info_of_tables': 'info score.csv score_tiles.csv trust.csv suspects.csv report/scores.csv report/nuclei.csv '
                      'check/*.csv',
    'models': 'models',
    'no_such_option': 'run IN/plain --colour red',
}

# Those that end with another exit code than 0

CODES = {'refused': 1, 'strict': 1, 'axes_that_do_not_fit': 1, 'dry': 1, 'trust': 1, 'info': 1, 'out_of_place': 2,
         'tile_too_small': 2, 'no_such_option': 2}
COMPUTES = 'run', 'score', 'trust', 'calibrate', 'demo'


def arguments(text):
    "What a command is called with; results do not depend on a graphics card that may be there"
    args = shlex.split(re.sub(r'\bIN\b', '../inputs', text).replace('FAST', '--model nuclei-fast'))
    return args + ['--device', 'cpu'] if args[0] in COMPUTES else args


def commands():
    "All of them: names and arguments"
    runs = {k: f'run {v}' if '--out' in v else f'run {v} --out {k}' for k, v in RUNS.items()}
    return {k: arguments(v) for k, v in {**runs, **OTHERS}.items()}


def surroundings(checkout):
    "Environment variables in which Python finds the package of a checkout, and leaves nothing there"
    ours = {'PYTHONPATH': str(checkout), 'PYTHONDONTWRITEBYTECODE': '1', 'PYTHONUTF8': '1', 'COLUMNS': '200'}
    return {**os.environ, **ours}


def run_python(args, checkout, folder):
    "Run Python in a folder, with the package of a checkout"
    return subprocess.run([sys.executable, *args], cwd=folder, env=surroundings(checkout), capture_output=True,
                          text=True, encoding='utf-8')


def check_checkout(checkout, folder):
    "Is the package that is run that of the checkout?"
    found = run_python(['-c', 'import refocus_nbdev; print(refocus_nbdev.__file__)'], checkout, folder)
    if found.returncode or not Path(found.stdout.strip()).resolve().is_relative_to(checkout):
        raise SystemExit(f'{checkout}: its package cannot be run ({found.stdout.strip() or found.stderr.strip()})')


def words_name(args):
    "What the words of a command are kept in: those that programs read, facts on files, or words to people"
    return 'out.json' if '--json' in args else 'facts' if args[0] in ('info', 'models') else 'txt'


def run_all(checkout, folder):
    "Run all commands of a version; their exit codes"
    codes = {}
    (folder / 'words').mkdir(parents=True)
    check_checkout(checkout, folder)
    for name, args in commands().items():
        start = time.monotonic()
        done = run_python(['-m', 'refocus_nbdev.cli', *args], checkout, folder)
        (folder / 'words' / f'{name}.{words_name(args)}').write_text(done.stdout, 'utf-8')
        (folder / 'words' / f'{name}.errors.txt').write_text(done.stderr, 'utf-8')
        codes[name] = done.returncode
        print(f'{folder.name}: {name}, exit code {done.returncode}, {time.monotonic() - start:.0f} s', file=sys.stderr)
    return codes


# Comparing: each function gives sentences on what differs

class Soft(str):
    "A difference that does not count: of words to people, of how the same pixels are packed, or of a last digit"


NUMBER_TOLERANCE = 1e-6
SIXTH_DIGIT = 1.01e-5
UNCOMPARED = {'version', 'predictions_by', 'seconds', 'megapixels_per_second', 'refocus_nbdev'}
WORDY = {'note', 'remarks', 'doubts', 'hints', 'failed'}


def short(text, at, most=70):
    "A part of a text that begins at a place"
    return '... ' * (at > 0) + text[at:at + most] + ' ...' * (at + most < len(text))


def changed(what, a, b, kind=str):
    "A sentence with both; of long ones, what is around the first difference"
    a, b = repr(a), repr(b)
    at = max(len(os.path.commonprefix([a, b])) - 20, 0) if max(len(a), len(b)) > 70 else 0
    return kind(f'{what}: {short(a, at)} became {short(b, at)}')


def shared(a, b):
    return [k for k in a if k in b]


def different_names(what, a, b):
    "On names that only one of two has"
    gone, new = [k for k in a if k not in b], [k for k in b if k not in a]
    if gone:
        yield f'{what} gone: {", ".join(map(str, gone))}'
    if new:
        yield f'{what} new: {", ".join(map(str, new))}'


def different_pixels(what, a, b):
    "On two arrays"
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        yield changed(what, (str(a.dtype), a.shape), (str(b.dtype), b.shape))
    elif a.tobytes() != b.tobytes():
        off = np.abs(a.astype(float) - b.astype(float))
        yield f'{what}: {np.count_nonzero(off)} of {a.size} values differ, by {np.nanmax(off):g} at most'


# TIFF

SOFTWARE, DESCRIPTION, IMAGEJ_SIZES, IMAGEJ = 305, 270, 50838, 50839
PLACES = {273, 279, 324, 325, 330}


def without_our_comment(xml):
    "OME-XML, bytes, without our annotations, and without what was there for them alone"
    xml = re.sub(rb'<([\w:]*CommentAnnotation)\b[^>]*ID="Annotation:refocus_nbdev:.*?</\1>', b'', xml, flags=re.S)
    xml = re.sub(rb'<[\w:]*AnnotationRef\b[^>]*ID="Annotation:refocus_nbdev:[^>]*/>', b'', xml)
    return re.sub(rb'<([\w:]*StructuredAnnotations)\b[^>]*>\s*</\1>', b'', xml).rstrip(b'\0 \n')


def without_our_line(info):
    "ImageJ's Info without the lines in which we say what made it"
    return '\n'.join(o for o in info.split('\n') if 'refocus_nbdev' not in o).rstrip('\0 \n')


def comparable(x):
    "An entry of ImageJ, as a text that is the same where it is"
    if isinstance(x, np.ndarray):
        return f'{x.dtype} {x.shape} {x.tobytes().hex()}'
    return [comparable(o) for o in x] if isinstance(x, (list, tuple)) else repr(x)


def imagej_entries(entries):
    "All that ImageJ keeps, but for what we say of ourselves"
    info = without_our_line(entries.get('Info', ''))
    kept = {k: comparable(v) for k, v in entries.items() if k != 'Info'}
    return {**kept, 'Info': info} if info else kept


def raw(tag):
    "The bytes of a tag"
    file = tag.parent.filehandle
    file.seek(tag.valueoffset)
    return file.read(tag.valuebytecount)


def tag_content(tag):
    "What is compared of a tag"
    if tag.code in (SOFTWARE, IMAGEJ_SIZES):
        return None
    if tag.code == IMAGEJ:
        return imagej_entries(tag.value)
    if tag.code in PLACES:
        return tag.count
    if tag.code == DESCRIPTION and b'Annotation:refocus_nbdev' in raw(tag):
        return without_our_comment(raw(tag))
    return int(tag.dtype), tag.count, raw(tag)


def tags_of(page):
    "The tags of a page by their names; of those that are there twice, the second is numbered"
    found = {}
    for tag in page.tags:
        name = tag.name if tag.name not in found else f'{tag.name} 2'
        found[name] = tag_content(tag)
    return found


def different_tags(what, a, b):
    "On the tags of two pages"
    a, b = tags_of(a), tags_of(b)
    yield from different_names(f'{what}: tags', a, b)
    for k in shared(a, b):
        if a[k] != b[k]:
            yield changed(f'{what}: tag {k}', a[k], b[k])


def packed(page):
    "The bytes of the strips or tiles of a page"
    file, parts = page.parent.filehandle, []
    for at, size in zip(page.dataoffsets, page.databytecounts):
        file.seek(at)
        parts.append(file.read(size))
    return parts


def different_page(what, a, b):
    "On two pages"
    yield from different_tags(what, a, b)
    pixels = list(different_pixels(f'{what}: pixels', a.asarray(), b.asarray()))
    yield from pixels
    if not pixels and packed(a) != packed(b):
        yield Soft(f'{what}: the same pixels are packed otherwise')


def pages_below(name, page):
    "A page and those in its sub-IFDs, with names"
    yield name, page
    for i, level in enumerate(page.pages or ()):
        yield from pages_below(f'{name}, level {i + 1}', level.aspage())


def all_pages(tif):
    return dict(o for i, p in enumerate(tif.pages) for o in pages_below(f'page {i}', p.aspage()))


def different_rest(a, b):
    "On pixels that have no pages of their own, as in large files of ImageJ"
    for i, (s, t) in enumerate(zip(a.series, b.series)):
        if s.is_truncated or t.is_truncated:
            yield from different_pixels(f'series {i}', s.asarray(), t.asarray())


def compare_tiffs(a, b):
    "On two TIFFs"
    with tifffile.TiffFile(a, _multifile=False) as a, tifffile.TiffFile(b, _multifile=False) as b:
        kinds = [(t.byteorder, t.is_bigtiff, len(t.series)) for t in (a, b)]
        if kinds[0] != kinds[1]:
            yield changed('byte order, is BigTIFF, series', *kinds)
        pages, others = all_pages(a), all_pages(b)
        yield from different_names('pages', pages, others)
        for name in shared(pages, others):
            yield from different_page(name, pages[name], others[name])
        yield from different_rest(a, b)


# PNG

def chunks_of(data):
    "Names and contents of what a PNG holds beside its pixels and its text Software"
    found, at = [], 8
    while at + 12 <= len(data):
        size, name = struct.unpack('>I4s', data[at:at + 8])
        content = data[at + 8:at + 8 + size]
        at += size + 12
        if name != b'IDAT' and not (name in (b'tEXt', b'zTXt', b'iTXt') and content.startswith(b'Software\0')):
            found.append((name.decode(), content))
    return found


def different_pngs(a, b):
    "On two PNGs, given as bytes"
    x, y = (np.array(Image.open(io.BytesIO(o))) for o in (a, b))
    yield from different_pixels('pixels', x, y)
    for i, (c, d) in enumerate(itertools.zip_longest(chunks_of(a), chunks_of(b))):
        if c != d:
            yield changed(f'chunk {i}', c, d)


def compare_pngs(a, b):
    "On two PNGs"
    yield from different_pngs(a.read_bytes(), b.read_bytes())


# Zarr

def is_zarr(path):
    return (path / 'zarr.json').is_file() or (path / '.zgroup').is_file()


def without_our_attribute(x):
    if isinstance(x, dict):
        return {k: without_our_attribute(v) for k, v in x.items() if k != 'refocus_nbdev'}
    return [without_our_attribute(o) for o in x] if isinstance(x, list) else x


def is_metadata(path):
    return path.name in ('zarr.json', '.zattrs', '.zgroup', '.zarray', '.zmetadata')


def content_of(path):
    "What is compared of a file of a Zarr"
    return without_our_attribute(json.loads(path.read_text('utf-8'))) if is_metadata(path) else path.read_bytes()


def files_in(folder):
    return {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob('*')) if p.is_file()}


def is_chunk(name):
    return re.fullmatch(r'[\d.]+', name.rpartition('/')[2])


def arrays_of(path):
    "The arrays of a Zarr by their paths"
    return {k: a for k, a in zarr.open_group(str(path), mode='r').members(max_depth=None) if isinstance(a, zarr.Array)}


def different_arrays(a, b):
    "On the pixels of two Zarrs whose chunks differ, as they do if compression notes the time"
    a, b = arrays_of(a), arrays_of(b)
    pixels = [o for k in shared(a, b) for o in different_pixels(k, a[k][...], b[k][...])]
    yield from pixels or [Soft('the same pixels are packed otherwise')]


def compare_zarrs(a, b):
    "On two Zarrs"
    files, others = files_in(a), files_in(b)
    yield from different_names('files', files, others)
    changes = [k for k in shared(files, others) if content_of(files[k]) != content_of(others[k])]
    for name in changes:
        if not is_chunk(name):
            yield f'{name} differs'
    if any(map(is_chunk, changes)):
        yield from different_arrays(a, b)


# Tables, JSON, pages of reports, models, words

def number(x):
    try:
        return float(x)
    except (TypeError, ValueError):
        return None


def alike(a, b):
    "Are two entries the same, or numbers that are nearly so?"
    if a == b:
        return True
    if isinstance(a, bool) or isinstance(b, bool) or number(a) is None or number(b) is None:
        return False
    return math.isclose(number(a), number(b), rel_tol=NUMBER_TOLERANCE, abs_tol=1e-12)


def last_digit_only(a, b, places=math.inf):
    "Do two numbers, of six digits or of so many places, differ in the last one alone, as they may after a transform?"
    x, y = number(a), number(b)
    both = x is not None and y is not None
    return both and math.isclose(x, y, rel_tol=SIXTH_DIGIT, abs_tol=1.01 * 10 ** -places)


def compare_tables(a, b):
    "On two CSV files"
    a, b = (list(csv.reader(p.read_text('utf-8').splitlines())) for p in (a, b))
    if a[:1] != b[:1] or len(a) != len(b):
        yield changed('columns, rows', (a[:1], len(a)), (b[:1], len(b)))
        return
    for i, (r, s) in enumerate(zip(a, b)):
        for column, x, y in zip(a[0], r, s):
            if column not in UNCOMPARED and not alike(x, y):
                light = column in WORDY or last_digit_only(x, y)
                yield changed(f'row {i}, {column}', x, y, Soft if light else str)


def different_json(a, b, at='', kind=str):
    "On what two JSON files hold"
    if isinstance(a, dict) and isinstance(b, dict):
        yield from different_names(f'{at} entries', a, b)
        for k in [k for k in shared(a, b) if k not in UNCOMPARED]:
            yield from different_json(a[k], b[k], f'{at}/{k}', Soft if k in WORDY else kind)
    elif isinstance(a, list) and isinstance(b, list) and len(a) == len(b):
        for i, (x, y) in enumerate(zip(a, b)):
            yield from different_json(x, y, f'{at}/{i}', kind)
    elif not alike(a, b):
        yield changed(at, a, b, Soft if last_digit_only(a, b, 6) else kind)


def compare_json(a, b):
    "On two JSON files"
    yield from different_json(json.loads(a.read_text('utf-8')), json.loads(b.read_text('utf-8')))


PICTURE = re.compile(r'data:image/png;base64,([^"\']*)')


def without_makers(page):
    "The words of a report, a tag a line, without those on what made it"
    words = PICTURE.sub('', page).replace('<', '\n<')
    return re.sub(r'<li>(?:<[^>]*>)*(?:refocus_nbdev \S+|predictions by:[^\n]*)', '', words)


def compare_pages(a, b):
    "On two reports"
    a, b = a.read_text('utf-8'), b.read_text('utf-8')
    pictures, others = PICTURE.findall(a), PICTURE.findall(b)
    if len(pictures) != len(others):
        yield changed('pictures', len(pictures), len(others))
    for i, (x, y) in enumerate(zip(pictures, others)):
        yield from (f'picture {i}: {o}' for o in different_pngs(base64.b64decode(x), base64.b64decode(y)))
    yield from different_lines(without_makers(a), without_makers(b), Soft)


def read_model(path):
    "The tensors and the card of a model"
    with safe_open(path, 'np') as f:
        return {k: f.get_tensor(k) for k in f.keys()}, f.metadata()


def compare_models(a, b):
    "On two model files"
    (tensors, said), (others, told) = read_model(a), read_model(b)
    yield from different_names('tensors', tensors, others)
    for k in shared(tensors, others):
        yield from different_pixels(k, tensors[k], others[k])
    cards = [{**o, 'card': json.loads(o['card'])} if 'card' in o else o for o in (said, told)]
    yield from different_json(*cards)


def without_times(text):
    "Words without times, and without lines on how far it has come"
    text = re.sub(r'^.*: [\d.]+ of \d+ done, about .* left\n', '', text, flags=re.M)
    return re.sub(r'[\d.]+ Mpx/s|[\d.]+ s\b|time \d+:\d+', '...', text)


def different_lines(a, b, kind):
    "On two texts, line by line"
    for i, (x, y) in enumerate(itertools.zip_longest(a.splitlines(), b.splitlines()), 1):
        if x != y:
            yield changed(f'line {i}', x, y, kind)


def compare_words(a, b):
    "On what two commands print"
    yield from different_lines(without_times(a.read_text('utf-8')), without_times(b.read_text('utf-8')), Soft)


def compare_facts(a, b):
    "On what two commands print, word for word"
    yield from different_lines(a.read_text('utf-8'), b.read_text('utf-8'), str)


def compare_bytes(a, b):
    "On any two files"
    if a.read_bytes() != b.read_bytes():
        yield f'bytes differ ({a.stat().st_size} became {b.stat().st_size})'


COMPARERS = {
    '.tif': compare_tiffs, '.png': compare_pngs, '.zarr': compare_zarrs, '.csv': compare_tables, '.json': compare_json,
    '.html': compare_pages, '.safetensors': compare_models, '.txt': compare_words, '.facts': compare_facts,
}


def equal_bytes(a, b):
    "Are two files, or folders, the same to the byte?"
    if a.is_dir() and b.is_dir():
        a, b = files_in(a), files_in(b)
        return a.keys() == b.keys() and all(equal_bytes(a[k], b[k]) for k in a)
    return a.is_file() and b.is_file() and a.read_bytes() == b.read_bytes()


def compare(a, b):
    "What differs in two files"
    if equal_bytes(a, b):
        return []
    try:
        return list(COMPARERS.get(a.suffix, compare_bytes)(a, b))
    except Exception as e:
        return [f'cannot be compared ({type(e).__name__}: {e})']


# The whole

def units(folder):
    "The files in a folder by their names; a Zarr is one"
    found = {}
    for p in sorted(folder.iterdir()):
        if p.is_dir() and not is_zarr(p):
            found.update({f'{p.name}/{k}': v for k, v in units(p).items()})
        else:
            found[p.name] = p
    return found


def compare_folders(a, b):
    "Of each file in one of two folders, what differs"
    a, b = units(a), units(b)
    found = {k: compare(a[k], b[k]) for k in shared(a, b)}
    found.update({k: ['gone'] for k in a.keys() - b.keys()})
    found.update({k: ['new'] for k in b.keys() - a.keys()})
    return dict(sorted(found.items()))


def compare_codes(a, b):
    "Of each command, whether its exit code changed, or is another than it should be"
    found = {}
    for k in a:
        meant = CODES.get(k, 0)
        said = [f'exit code {a[k]} became {b[k]}'] if a[k] != b[k] else []
        found[f'command {k}'] = said or [f'exit code {a[k]}, not {meant}: not what is to be compared'] * (a[k] != meant)
    return found


def hard(said):
    return [o for o in said if not isinstance(o, Soft)]


def soft(said):
    return [o for o in said if isinstance(o, Soft)]


def in_short(said, most=4):
    "Sentences in one, the first ones if they are many"
    return '; '.join(said[:most]) + f'; and {len(said) - most} more' * (len(said) > most)


def print_table(found):
    "A line for each file, and those on what does not count"
    width = max(map(len, found))
    for name, said in found.items():
        print(f'{name:{width}}  {in_short(hard(said)) or "same"}')
    softer = {k: soft(v) for k, v in found.items() if soft(v)}
    if softer:
        print('\nWords, how pixels are packed, and last digits of numbers, which do not count:')
    for name, said in softer.items():
        print(f'{name:{width}}  {in_short(said)}')


def to_the_byte(a, b):
    "How many files are the same to the byte"
    a, b = units(a), units(b)
    return sum(equal_bytes(a[k], b[k]) for k in shared(a, b))


def summary(found, exact, inputs, seconds):
    "All in one line"
    differ, worded = (sum(bool(f(o)) for o in found.values()) for f in (hard, soft))
    files = sum(not k.startswith('command ') for k in found)
    return (f'{inputs} input files, {len(found) - files} commands, {files} files came out, {exact} of them the same '
            f'to the byte; {differ} files or exit codes differ, {worded} in what does not count; {seconds:.0f} s')


@contextmanager
def working_folder(kept):
    "The folder that is asked for, which must be empty, or one that is gone afterwards"
    if not kept:
        with tempfile.TemporaryDirectory() as folder:
            yield Path(folder)
        return
    kept.mkdir(parents=True, exist_ok=True)
    if any(kept.iterdir()):
        raise SystemExit(f'{kept}: is not empty; choose another folder')
    yield kept.resolve()


def compare_versions(old, new, folder):
    "Make inputs, run both, compare and tell; does anything differ that counts?"
    start = time.monotonic()
    inputs = write_inputs(folder / 'inputs', Sample(new / 'data' / 'sample'))
    codes = [run_all(checkout, folder / name) for name, checkout in (('old', old), ('new', new))]
    found = {**compare_folders(folder / 'old', folder / 'new'), **compare_codes(*codes)}
    print_table(found)
    print('\n' + summary(found, to_the_byte(folder / 'old', folder / 'new'), inputs, time.monotonic() - start))
    return any(map(hard, found.values()))


def main():
    "The command line"
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('old', type=Path, help='checkout of the old version')
    parser.add_argument('new', type=Path, help='checkout of the new version')
    parser.add_argument('--keep', type=Path, metavar='FOLDER', help='empty folder in which inputs and outputs are kept')
    args = parser.parse_args()
    with working_folder(args.keep) as folder:
        sys.exit(int(compare_versions(args.old.resolve(), args.new.resolve(), folder)))


if __name__ == '__main__':
    main()
