# %% md [title]
# Losses

> What a refocused image is compared with the sharp one by: pixels, structure, and what a network trained on photographs sees

# %% [default-exp]
#| default_exp losses

# %% [quiet]
#| hide
import warnings
warnings.filterwarnings('ignore', '`torch.jit.script', FutureWarning)

# %% [imports]
#| export
import torch, torch.nn.functional as F
from threading import Lock
from torch import nn, Tensor
from pathlib import Path
from urllib.error import URLError
from safetensors import safe_open, SafetensorError
from torchvision.models import get_model_weights, vgg16_bn
from fastcore.basics import patch
from fastai.callback.hook import hook_outputs
from fastai.callback.mixup import reduce_loss
from fastai.vision.core import imagenet_stats

# %% [dev-imports]
#| hide
import os, pickle, tempfile, time, numpy as np, pandas as pd, matplotlib.pyplot as plt
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from unittest import mock
from fastcore.test import *
from fastai.basics import *
from fastai.callback.progress import *
from fastai.metrics import LossMetrics
from fastai.vision.core import TensorImageBW
from safetensors.torch import save_file
from torch.utils.flop_counter import FlopCounterMode
from torchvision.models import vgg16, vgg19
from refocus_nbdev.optics import jittered_kernels, blur, make_field
from refocus_nbdev.images import read_image
plt.rcParams.update({'figure.dpi': 70, 'image.cmap': 'gray'})
pd.set_option('display.width', 160)

# %% md [intro]
`FeatureLoss` is the loss of fastai's lesson 7: pixels, plus what a VGG sees, plus how that hangs together; `vgg_features` makes the VGG, `calibrate` sets its weights. `ScaledL1Loss`, `CharbonnierLoss` and `SSIMLoss` are the simpler ones it is compared with. All are called as fastai calls a loss, `loss(pred, targ)`, on batches of shape (n, 1, h, w).

# %% md [field-why]
## Something to compare

Four simulated fields of nuclei, and the same fields out of focus. They are larger than what we look at, because light leaks in from outside the frame. An unjittered kernel keeps the experiments below on a smooth curve.

Intensities reach a network divided by a scale that comes from the *blurred* image, the only one there is when refocusing. Here that is its maximum 12 µm out of focus. A sharp image then goes above 1, and how far differs between crops.

# %% [field]
def defocused(x, um): return blur(x, jittered_kernels(torch.tensor([float(um)]), width_jitter=0, shape_jitter=0))
def show(ims, titles, vmax=1.3):
    _,axs = plt.subplots(1, len(ims), figsize=(2.2*len(ims),2.5))
    for ax,im,t in zip(axs, ims, titles): ax.imshow(im, vmin=0, vmax=vmax); ax.set_title(t); ax.axis('off')

rng = np.random.default_rng(5)
field = torch.tensor(np.stack([make_field(rng, (224,224), 1.)[0] for _ in range(4)]))[:,None]
field = field/defocused(field, 12).amax((1,2,3), keepdim=True)
sharp,blurred = defocused(field, 0),defocused(field, 12)
show([defocused(field[2:3], um)[0,0] for um in (0,4,12,24)], ['0 µm','4 µm','12 µm','24 µm'])

# %% md [answers-why]
## Why pixel losses blur

Out of focus, the fine grain of chromatin is gone, and no network can know what it was. Here are nine nuclei that differ in nothing but their grain. Twelve µm from focus, they are one and the same image.

# %% [answers]
def grained(x, n, amount=0.2):
    z = torch.randn(n, 1, *(s+128 for s in x.shape[2:]), generator=torch.Generator().manual_seed(0))
    grain = defocused(z, 3)-defocused(z, 12)
    return x*(1+amount*grain/grain.std())

many = grained(field[2:3], 9)
answers,seen = defocused(many, 0),defocused(many, 12)
mean = answers.mean(0, keepdim=True)
show([*answers[:2,0], *seen[:2,0], mean[0,0]], ['one answer', 'another', 'the one blurred', 'the other blurred', 'mean of nine'])

# %% md [mean-why]
A network is asked for one image, and pays for its distance to whichever answer was the true one. The image with the least squared error to nine answers is their mean, the one with the least absolute error their median, pixel by pixel. Neither is a sharp nucleus: grain at a place is a bet, and on average a smooth guess costs less than any bet. So a network trained on pixels alone *has* to answer smoothly where it does not know. That is honest, and it looks blurred.

# %% [guesses]
def apart(x, y): return (x-y).abs().mean().item()

guesses = {'one of the answers': answers[:1], 'their mean': mean, 'their median': answers.median(0, keepdim=True)[0]}
assert apart(seen[:1], seen[1:])<apart(answers[:1], answers[1:])/5
for a in answers:
    assert apart(guesses['their median'], answers)<apart(a, answers)
    assert F.mse_loss(mean.expand_as(answers), answers)<F.mse_loss(a.expand_as(answers), answers)
pd.DataFrame({k: {'absolute error': apart(g, answers[1:]), 'squared error': ((g-answers[1:])**2).mean().item()} for k,g in guesses.items()}).T.round(4)

# %% md [contrast-why]
## Pixels

The smaller the nuclei and the farther from focus, the more a sharp target exceeds its input's scale: up to 6 times. A plain L1 then listens to a few crops only. So a loss may be asked to measure in units of the target's own contrast: its mean absolute deviation, floored, so that an empty crop's noise is not blown up.

# %% [contrast]
#| export
def contrast(
    x:Tensor, # Images, float (n, 1, h, w), any unit
    floor:float=0.05, # The least contrast to return, in the images' unit, above 0
)->Tensor: # (n, 1, 1, 1), in the images' unit
    "Mean absolute deviation of each image from its own mean, at least `floor`"
    d = x-x.mean((1,2,3), keepdim=True)
    return d.abs().mean((1,2,3), keepdim=True).clamp(min=floor)

# %% [contrast-test]
test_close(contrast(3*sharp+7), 3*contrast(sharp), 1e-5)
test_eq(contrast(torch.ones(2,1,5,7), floor=0.1), torch.full((2,1,1,1), 0.1))
contrast(sharp).flatten()

# %% md [image-loss-why]
All losses here have four things in common: they forget fastai's tensor types, they send gradients to the prediction only, they measure in some `unit`, and they cost one number per image, reduced last. fastai sets `reduction` to `'none'` when it wants that number, in `get_preds(with_loss=True)` for instance. A subclass only says what an image costs.

# %% [ImageLoss]
#| export
class ImageLoss(nn.Module):
    "Base of losses that cost one number per image, which a subclass computes in `per_image`; raises `ValueError` where shapes differ"
    def __init__(self,
        unit:callable=None, # From targets (n, 1, h, w) to the intensity (n, 1, 1, 1) that counts as one, such as `contrast`; None takes images as they are
        reduction:str='mean', # 'mean' or 'sum' over the batch, or 'none' for one number per image
    ):
        super().__init__()
        self.unit,self.reduction = unit,reduction

    def forward(self, pred, targ):
        if pred.shape!=targ.shape: raise ValueError(f'The prediction has shape {tuple(pred.shape)} and the target {tuple(targ.shape)}: an image can only be compared with one of its own size')
        pred,targ = (t.as_subclass(Tensor).float() for t in (pred,targ.detach()))
        u = 1 if self.unit is None else self.unit(targ)
        return reduce_loss(self.per_image(pred/u, targ/u), self.reduction)

# %% md [scaled-why]
With it, the pixel losses are a line each.

# %% [ScaledL1Loss]
#| export
def _per_image(x): return x.mean(tuple(range(1, x.ndim)))

class ScaledL1Loss(ImageLoss):
    "Mean absolute difference in units of the target's contrast: a blank prediction at the target's mean costs 1"
    def __init__(self,
        unit:callable=contrast, # From targets to the intensity that counts as one; None is a plain L1
        reduction:str='mean', # 'mean', 'sum' or 'none'
    ): super().__init__(unit, reduction)
    def per_image(self, pred, targ): return _per_image((pred-targ).abs())

# %% [scaled-test]
l1 = ScaledL1Loss()
test_eq(l1(sharp, sharp), 0)
test_close(l1(sharp.mean((1,2,3), keepdim=True).expand_as(sharp), sharp), 1)
test_close(l1(5*blurred+1, 5*sharp+1), l1(blurred, sharp))
test_close(ScaledL1Loss(unit=None)(blurred, sharp), F.l1_loss(blurred, sharp))
with expect_fail(ValueError, 'only be compared'): l1(sharp[...,1:], sharp)

# %% md [charbonnier-why]
Charbonnier's loss is an L1 whose corner is rounded off: differences far below `eps` cost their square, so training settles instead of rattling.

# %% [CharbonnierLoss]
#| export
class CharbonnierLoss(ScaledL1Loss):
    "Smooth L1, sqrt(d^2+eps^2)-eps, in units of the target's contrast (Charbonnier et al. 1994, doi:10.1109/ICIP.1994.413553)"
    def __init__(self,
        eps:float=1e-2, # Where the corner is rounded off, in units of `unit`, above 0
        unit:callable=contrast, # From targets to the intensity that counts as one; None takes images as they are
        reduction:str='mean', # 'mean', 'sum' or 'none'
    ):
        super().__init__(unit, reduction)
        self.eps = eps
    def per_image(self, pred, targ): return _per_image(((pred-targ)**2+self.eps**2).sqrt()-self.eps)

# %% [charbonnier-test]
test_eq(CharbonnierLoss()(sharp, sharp), 0)
test_close(CharbonnierLoss(eps=1e-6)(blurred, sharp), l1(blurred, sharp), 1e-4)
assert CharbonnierLoss()(blurred, sharp)<l1(blurred, sharp)

# %% md [ssim-why]
## Structure

SSIM compares local means, variances and covariance under a Gaussian window. On 128-pixel crops only one scale makes sense: the multi-scale version would halve them four times. It is computed in float32 whatever the autocast, since a variance is a small difference of large numbers.

# %% [ssim_map]
#| export
def _window_mean(x, sigma=1.5, radius=5):
    g = torch.exp(-torch.arange(-radius, radius+1., device=x.device)**2/(2*sigma**2))
    g = (g/g.sum())[None,None,None]
    return F.conv2d(F.conv2d(F.pad(x, (radius,)*4, mode='replicate'), g), g.mT)

def ssim_map(
    pred:Tensor, # Images, float32 (n, 1, h, w)
    targ:Tensor, # Images to compare with, same shape and unit
    span, # Data range of the target in the same unit, above 0: a number or (n, 1, 1, 1)
)->Tensor: # (n, 1, h, w), from -1 to 1
    "Local structural similarity, 11-pixel Gaussian window of sigma 1.5 (Wang et al. 2004, doi:10.1109/TIP.2003.819861)"
    c1,c2 = (0.01*span)**2,(0.03*span)**2
    with torch.autocast(pred.device.type, enabled=False):
        mp,mt,pp,tt,pt = (_window_mean(x) for x in (pred, targ, pred*pred, targ*targ, pred*targ))
    luminance = (2*mp*mt+c1)/(mp*mp+mt*mt+c1)
    return luminance*(2*(pt-mp*mt)+c2)/(pp-mp*mp+tt-mt*mt+c2)

# %% md [ssim-loss-why]
Away from the border it is scikit-image's, and the loss is what it lacks to one.

# %% [SSIMLoss]
#| export
class SSIMLoss(ImageLoss):
    "One minus the mean structural similarity, 0 to 2; the data range is the target's own, at least `floor`"
    def __init__(self,
        floor:float=0.05, # The least data range, in the images' unit, above 0
        reduction:str='mean', # 'mean', 'sum' or 'none'
    ):
        super().__init__(None, reduction)
        self.floor = floor
    def per_image(self, pred, targ):
        span = targ.amax((1,2,3), keepdim=True)-targ.amin((1,2,3), keepdim=True)
        return 1-_per_image(ssim_map(pred, targ, span.clamp(min=self.floor)))

# %% [ssim-test]
from skimage.metrics import structural_similarity
ref = structural_similarity(blurred[0,0].numpy(), sharp[0,0].numpy(), data_range=1, gaussian_weights=True, use_sample_covariance=False, full=True)[1]
test_close(ssim_map(blurred, sharp, 1)[0,0,5:-5,5:-5], ref[5:-5,5:-5], 1e-3)
test_eq(SSIMLoss()(sharp, sharp), 0)
test_close(SSIMLoss()(5*blurred, 5*sharp), SSIMLoss()(blurred, sharp), 1e-4)
test_eq(SSIMLoss()(sharp[...,:3,:4], sharp[...,:3,:4]), 0)

# %% md [simple-curve-why]
All of them are zero in focus, and grow with every µm away from it, each with its own idea of how fast.

# %% [simple-curve]
ums = [0,1,2,4,6,8,12,16,24,32]
planes = {um: defocused(field, um) for um in ums}
simple = {type(l).__name__: [l(x, sharp).item() for x in planes.values()] for l in (l1, CharbonnierLoss(), SSIMLoss())}
for v in simple.values(): assert (np.diff(v)>0).all()
ax = pd.DataFrame(simple, index=ums).plot(figsize=(5,3), xlabel='defocus (µm)', ylabel='loss')

# %% md [vgg-why]
## A network that looks

Pixel losses forgive a blurred edge if its mean is right. A network trained on photographs responds to edges and textures, so comparing its activations makes their absence cost something. Lesson 7 takes VGG, and looks at it just before it shrinks the image: at the activations that go into a max-pooling.

torchvision's constructors also build and fill a classifier of 120 million weights that nobody needs here. On the `meta` device that costs nothing.

# %% [relus_before_pools]
#| export
def relus_before_pools(
    net:nn.Sequential, # The convolutional part of a VGG
)->list: # Indices into `net`
    "Where a VGG is looked at: the layer before each max-pooling"
    return [i-1 for i,m in enumerate(net) if isinstance(m, nn.MaxPool2d)]

def _blank(arch):
    with torch.device('meta'): return arch(weights=None).features

# %% [relus-test]
net = _blank(vgg16_bn)
test_eq(relus_before_pools(net), [5, 12, 22, 32, 42])
assert all(isinstance(net[i], nn.ReLU) for i in relus_before_pools(net))
test_eq(relus_before_pools(_blank(vgg19)), [3, 8, 17, 26, 35])

# %% md [frozen-why]
Our images are not photographs: one channel, a black background, intensities around 0 to 1 and sometimes far above. `FrozenVGG` takes 0 as a photo's black and 1 as its white, repeats the channel for red, green and blue, and shifts and stretches these by ImageNet's statistics. Nothing is clipped: a nucleus of 3 stays brighter than one of 2, and keeps its gradient.

It never trains, not even after `.train()`. Three settings differ from torchvision's: poolings keep an odd last row or column, so that any size has features, down to a single pixel; ReLUs leave their input alone, so that any layer can be looked at; and the channels of a pixel lie side by side in memory, which convolutions and poolings are faster at (measured at the end).

# %% [FrozenVGG]
#| export
class FrozenVGG(nn.Sequential):
    "The convolutional part of a VGG for images (n, 1, h, w) with 0 for black and 1 for white, never clipped; frozen, always in evaluation mode"
    def __init__(self, *layers):
        super().__init__(*layers)
        for m in self:
            if isinstance(m, nn.MaxPool2d): m.ceil_mode = True
            if isinstance(m, nn.ReLU): m.inplace = False
        for n,v in zip(('mean','std'), imagenet_stats): self.register_buffer(n, torch.tensor(v)[:,None,None], persistent=False)
        self.requires_grad_(False).eval().to(memory_format=torch.channels_last)

    def forward(self, x): return super().forward(((x.expand(-1,3,-1,-1)-self.mean)/self.std).to(self.mean.dtype))
    def train(self, mode=True): return super().train(False)

# %% md [weights-why]
## Where its weights come from

torchvision's ImageNet weights are downloaded on first use. Random ones need no download, and a random network still tells edges from blobs; their draws come from a generator of their own, so nobody else's seed is touched.

# %% [_imagenet]
#| export
def _convolutional(sd): return {k.removeprefix('features.'): v.float() for k,v in sd.items() if not k.startswith('classifier.')}

def _imagenet(arch):
    w = get_model_weights(arch).DEFAULT
    try: return _convolutional(w.get_state_dict(check_hash=True, weights_only=True))
    except URLError as e: raise OSError(f'{w.url} could not be downloaded ({e.reason}): pass `weights` the path of a .safetensors file, or None for random ones') from e

def _random(net, seed):
    net,g = net.to_empty(device='cpu'),torch.Generator().manual_seed(seed)
    for m in net:
        if isinstance(m, nn.Conv2d): nn.init.kaiming_normal_(m.weight, generator=g); nn.init.zeros_(m.bias)
        if isinstance(m, nn.BatchNorm2d): m.reset_parameters()
    return net.state_dict()

# %% md [from-file-why]
A local file may hold the whole network or only its first layers, under torchvision's names. It has to be of the architecture that was asked for, because nothing in the numbers would say so later.

# %% [_from_file]
#| export
def _from_file(path, net, arch):
    try:
        with safe_open(path, 'pt') as f: sd = _convolutional({k: f.get_tensor(k) for k in f.keys()})
    except SafetensorError as e: raise ValueError(f'{path} is not a safetensors file ({e}): convert the weights with safetensors.torch.save_file') from e
    want = {k: v.shape for k,v in net.state_dict().items()}
    wrong = [k for k,v in sd.items() if want.get(k)!=v.shape]
    if wrong: raise ValueError(f'{path} does not hold a {arch.__name__}, which has no `{wrong[0]}` of shape {tuple(sd[wrong[0]].shape)}: pass the `arch` it was trained as')
    return sd

# %% md [vgg_features-why]
`vgg_features` puts these together, and cuts the network after the last layer it looks at. Three weights mean three layers: the deepest three that the weights reach. By default these are layers 22, 32 and 42 of VGG-16-BN, weighted 5, 15 and 2, as in lesson 7.

# %% [vgg_features]
#| export
def vgg_features(
    weights='imagenet', # 'imagenet' for torchvision's, None for random ones, or the path of a .safetensors file
    arch:callable=vgg16_bn, # torchvision's constructor of a VGG
    layers:list=None, # Indices into its convolutional part; None for the deepest ReLUs before a max-pooling, one per weight
    wgts:tuple=(5,15,2), # What each layer counts
    seed:int=0, # Of random weights
)->tuple: # `FrozenVGG`, layers and weights: the arguments of `FeatureLoss`
    "A frozen VGG to look through; raises `ValueError` where weights do not fit `arch` or do not reach the layers, `OSError` where they cannot be had"
    net = _blank(arch)
    sd = _random(net, seed) if weights is None else _imagenet(arch) if weights=='imagenet' else _from_file(weights, net, arch)
    reach = [i for i in relus_before_pools(net) if net[:i+1].state_dict().keys()<=sd.keys()]
    taps = list(layers or reach[-len(wgts):])
    if len(taps)!=len(wgts) or not net[:max(taps)+1].state_dict().keys()<=sd.keys():
        raise ValueError(f'{weights} holds layers {reach} of {arch.__name__}, which does not fit layers={layers} with wgts={wgts}: pass one weight per layer, and no layer beyond these')
    net = net[:max(taps)+1]
    net.load_state_dict({k: sd[k] for k in net.state_dict()}, assign=True)
    return FrozenVGG(*net), taps, list(wgts)

# %% [vgg_features-test]
m_feat,layers,wgts = vgg_features(weights=None)
test_eq((layers, wgts, len(m_feat)), ([22,32,42], [5,15,2], 43))
assert not any(p.requires_grad for p in m_feat.parameters())
assert not any(m.training for m in m_feat.train().modules())
same,other = (vgg_features(weights=None, seed=s)[0] for s in (0,1))
test_eq(same[0].weight, m_feat[0].weight)
test_ne(other[0].weight, m_feat[0].weight)

# %% md [files-test-why]
The download itself cannot be part of a test, but all around it can: a file in torch's cache, under the name torchvision looks for, is what a finished download leaves behind. It has to be used, and nothing is unpickled from it. A file with the first half of a VGG-19 has three layers to look at, and they are found. Asked to be a VGG-16, or to show five layers, it is refused; so is a file of another kind.

# %% [download-test]
url = Path(get_model_weights(vgg16_bn).DEFAULT.url).name
with tempfile.TemporaryDirectory() as d, mock.patch.dict(os.environ, TORCH_HOME=d):
    cache = Path(d)/'hub/checkpoints'; cache.mkdir(parents=True)
    torch.save({f'features.{k}': v for k,v in m_feat.state_dict().items()}, cache/url)
    cached,*_ = vgg_features()
test_eq(cached[40].weight, m_feat[40].weight)
with mock.patch('torchvision.models._api.load_state_dict_from_url', side_effect=URLError('no network')):
    with expect_fail(OSError, 'pass `weights` the path'): vgg_features()

# %% [file-test]
with tempfile.TemporaryDirectory() as d:
    part,text = Path(d)/'part.safetensors',Path(d)/'text.safetensors'
    text.write_text('these are no weights')
    save_file({f'features.{k}': v.half().contiguous() for k,v in vgg_features(None, vgg19, wgts=(1,1,1,1))[0][:18].state_dict().items()}, part)
    test_eq(vgg_features(part, vgg19)[1], [3, 8, 17])
    test_eq(vgg_features(part, vgg19, layers=[8], wgts=[1])[1], [8])
    with expect_fail(ValueError, 'pass the `arch`'): vgg_features(part, vgg16)
    with expect_fail(ValueError, 'one weight per layer'): vgg_features(part, vgg19, wgts=(1,1,1,1,1))
    with expect_fail(ValueError, 'no layer beyond'): vgg_features(part, vgg19, layers=[8,17,26])
    with expect_fail(ValueError, 'not a safetensors file'): vgg_features(text, vgg19)

# %% md [env-why]
From here on the pictures and numbers are those of the network that is at hand. Where the folder named by `REFOCUS_WEIGHTS` holds the first half of a VGG-19 trained on ImageNet, as it did for the outputs shown here, that is used; without it, random weights of the same architecture, and every test below holds for them as well.

# %% [env]
trained = Path(os.environ.get('REFOCUS_WEIGHTS', ''))/'vgg19_features_to_relu3_4.safetensors'
m_feat,layers,wgts = vgg_features(trained if trained.is_file() else None, vgg19, layers=[3,8,17])
layers

# %% md [hook-why]
## A hook by hand

To see what a layer sees, ask PyTorch to call a function whenever the layer has run. The function notes the output down. `register_forward_hook` returns a handle, and a hook that is not removed through it stays for ever, holding on to what it saw last.

# %% [hook]
kept = []
hook = m_feat[8].register_forward_hook(lambda m,inp,out: kept.append(out))
m_feat(sharp), m_feat(blurred)
hook.remove()
m_feat(sharp)
[o.shape for o in kept]

# %% md [activations-why]
Two passes were seen, the third was not. A hook on each of several layers gives the activations at several depths. Here are three channels of each, those that differ most between a sharp nucleus (top) and the same 12 µm out of focus (bottom), each channel on one grey scale.

At full resolution (layer 3) the network answers to the rim and to single grains. At half (layer 8) it answers to outlines of one direction and to the texture between them; at a quarter (layer 17) to parts of a nucleus. Out of focus, all of them have little to answer to: where a pixel loss sees two images that are alike on average, these see that something is missing.

# %% [activations]
def activations(net, layers, x):
    kept = []
    hooks = [net[i].register_forward_hook(lambda m,inp,out: kept.append(out)) for i in layers]
    net(x)
    for h in hooks: h.remove()
    return kept

def nucleus(o): return o[2, :, 20*o.shape[-1]//96:68*o.shape[-1]//96, 12*o.shape[-1]//96:60*o.shape[-1]//96]

fs,fb = (activations(m_feat, layers, x) for x in (sharp, blurred))
top,bottom = ([nucleus(o) for o in (x,*f)] for x,f in ((sharp,fs),(blurred,fb)))
shown = [(i,c) for i,(s,b) in enumerate(zip(top, bottom)) for c in (s-b).abs().mean((1,2)).argsort(descending=True)[:3]]
_,axs = plt.subplots(2, len(shown), figsize=(13,3))
for col,(i,c) in zip(axs.T, shown):
    for ax,o in zip(col, (top,bottom)): ax.imshow(o[i][c], vmin=0, vmax=top[i][c].max()); ax.axis('off')
    col[0].set_title(f'layer {layers[i-1]}' if i else 'image')

# %% md [gram-why]
## What goes together, no matter where

Two images are alike in a layer when their activations are alike, pixel by pixel. They are alike in *texture* when the same channels respond together, wherever that is. The Gram matrix holds just that: the product of every channel with every other, summed over all pixels. A sum does not know its order. So shuffle the pixels of a layer, all channels alike: the activations are in ruins, the Gram matrix is what it was.

# %% [shuffle]
def gram_by_hand(x): return torch.einsum('nchw,ndhw->ncd', x, x)/x[0].numel()

def shuffled(x): return x.flatten(2)[...,torch.randperm(x[0,0].numel(), generator=torch.Generator().manual_seed(0))].view_as(x)

s,b = fs[0][2:3],fb[0][2:3]
grams = [gram_by_hand(x)[0] for x in (s, shuffled(s), b)]
test_close(grams[1], grams[0], 1e-4)
assert F.l1_loss(shuffled(s), s)>F.l1_loss(b, s) and F.l1_loss(grams[1], grams[0])<1e-3*F.l1_loss(grams[2], grams[0])
c = s.mean((0,2,3)).argmax()
show([x[0,c] for x in (s, shuffled(s), b)], ['a channel', 'shuffled', 'blurred'], vmax=s[0,c].max())
show(grams, ['its Gram matrix', 'shuffled', 'blurred'], vmax=grams[0].quantile(0.98))

# %% md [gram_matrix-why]
Two things are worth care. The sums are long, so they are kept in float32 under autocast too. And the gradient of a product needs two products, one for each factor. Here the factors are the same and the matrix is symmetric, so that both come out alike: one factor is held still, and the result is added to its own transpose. That is the same number, and the same gradient, for a third less work.

# %% [gram_matrix]
#| export
def gram_matrix(
    x:Tensor, # Activations (n, c, h, w), any float type
)->Tensor: # float32 (n, c, c), divided by c*h*w
    "How strongly each two channels respond together; has no second derivative"
    x = x.flatten(2).mT.float()
    with torch.autocast(x.device.type, enabled=False): g = x.detach().mT@x/x[0].numel()
    return g+g.mT-g.detach()

# %% [gram-test]
s = s.detach().requires_grad_()
one_sided = torch.randn(1, 64, 64, generator=torch.Generator().manual_seed(0))
ours,plain = (torch.autograd.grad((f(s)*one_sided).sum(), s)[0] for f in (gram_matrix, gram_by_hand))
test_close(gram_matrix(s), gram_by_hand(s), 1e-4)
test_close((ours-plain).norm()/plain.norm(), 0, 1e-5)
test_eq(gram_matrix(s.bfloat16()).dtype, torch.float32)

# %% md [lesson-why]
## Lesson 7 by hand

The loss of fastai's lesson 7 adds it all up: pixels, activations times a weight, Gram matrices times the weight's square and 5000. The square makes both follow a rescaled layer alike, since a Gram matrix is quadratic in the activations.

# %% [lesson]
def lesson_7(net, layers, wgts, pred, targ):
    fp,ft = (activations(net, layers, x) for x in (pred, targ))
    feat = [w*F.l1_loss(p, t) for w,p,t in zip(wgts, fp, ft)]
    gram = [w**2*5e3*F.l1_loss(gram_by_hand(p), gram_by_hand(t)) for w,p,t in zip(wgts, fp, ft)]
    return F.l1_loss(pred, targ) + sum(feat) + sum(gram)

lesson_7(m_feat, layers, wgts, blurred, sharp)

# %% md [FeatureLoss-why]
## The feature loss

The class does the same for any number of layers, and for each image. fastai's `hook_outputs` registers and removes the hooks, here around each pass: between calls the network is bare, so a loss can be copied, pickled and thrown away like any other module. Hooks sit on the network, though, and two threads that look through one network would see each other's images: they take turns. The sharp image goes through without a graph.

Every part of the last call stays behind as an attribute, averaged over the batch: `pixel`, then `feat_0` and `gram_0` for the first layer, and so on. `metric_names` lists them.

# %% [FeatureLoss]
#| export
_turn = Lock()

class FeatureLoss(ImageLoss):
    "Pixel L1, plus the L1 of each layer's activations times its weight, plus that of their Gram matrices times its weight squared and `gram` (fast.ai 2019, lesson 7); raises `ValueError` unless each layer has a weight"
    def __init__(self,
        m_feat:nn.Module, # The network to look through, indexable by layer: `FrozenVGG`, or any other, which is frozen
        layers:list, # Indices of the layers looked at, in the order they run
        wgts:list, # What each layer counts, 0 or more; see `calibrate`
        unit:callable=None, # From targets to the intensity that counts as one, such as `contrast`; None takes images as they are
        gram:float=5e3, # What Gram matrices count beside activations, 0 or more
        reduction:str='mean', # 'mean', 'sum' or 'none'
    ):
        super().__init__(unit, reduction)
        if len(layers)!=len(wgts): raise ValueError(f'{len(layers)} layers {list(layers)} and {len(wgts)} weights {list(wgts)}: each layer needs one weight')
        self.m_feat,self.layers,self.wgts,self.gram = m_feat.requires_grad_(False).eval(),list(layers),list(wgts),gram
        self.metric_names = ['pixel', *(f'{k}_{i}' for i in range(len(layers)) for k in ('feat','gram'))]

    def features(self, x):
        "Activations of each layer, float32"
        with _turn, hook_outputs([self.m_feat[i] for i in self.layers], detach=False) as hooks:
            self.m_feat(x)
            return [o.float() for o in hooks.stored]

    def train(self, mode=True):
        super().train(mode)
        self.m_feat.eval()
        return self

# %% md [parts-why]
What an image costs is the sum of its parts. `parts` is there for whoever wants them one by one, with their gradients.

# %% [parts]
#| export
@patch
def parts(self:FeatureLoss,
    pred:Tensor, # Images (n, 1, h, w), float32, in the unit that counts as one
    targ:Tensor, # Images to compare with, same shape and unit
)->list: # Tensors (n,), what each image costs, in the order of `metric_names`
    "The terms of the loss, weighted"
    with torch.no_grad(): ft = self.features(targ)
    costs = [_per_image((pred-targ).abs())]
    for w,p,t in zip(self.wgts, self.features(pred), ft):
        costs += [w*_per_image((p-t).abs()), self.gram*w**2*_per_image((gram_matrix(p)-gram_matrix(t)).abs())]
    return costs

@patch
def per_image(self:FeatureLoss, pred, targ):
    costs = self.parts(pred, targ)
    for n,c in zip(self.metric_names, costs): setattr(self, n, c.detach().mean())
    return sum(costs)

# %% md [equal-why]
It is lesson 7's number to 1e-5: with this network, with random weights, and with VGG-16-BN and lesson 7's own layers.

# %% [equal-test]
loss = FeatureLoss(m_feat, layers, wgts)
total = loss(blurred, sharp)
for net in ((m_feat,layers,wgts), vgg_features(None, vgg19, layers), vgg_features(None)):
    test_close(FeatureLoss(*net)(blurred[::2], sharp[::2])/lesson_7(*net, blurred[::2], sharp[::2]), 1, 1e-5)
test_close(sum(getattr(loss, n) for n in loss.metric_names)/total, 1, 1e-5)
loss.metric_names

# %% md [identity-why]
An image costs nothing when compared with itself, and one number per image is what `'none'` leaves. Gradients reach the prediction, and neither the target nor the network, even when both ask for them. Any network will do, here one of a single layer. No hook is left, not even when the network fails halfway.

# %% [identity-test]
test_eq(loss(sharp, sharp), 0)
loss.reduction = 'none'
each = loss(blurred, sharp)
loss.reduction = 'sum'
test_close(loss(blurred, sharp)/each.sum(), 1, 1e-5)
loss.reduction = 'mean'
assert each.shape==(4,) and (each>0).all()
test_close(each.mean()/total, 1, 1e-5)
with expect_fail(ValueError, 'each layer needs one weight'): FeatureLoss(m_feat, [3,8], [1])

# %% [gradient-test]
def hooks_left(m): return sum(len(o._forward_hooks) for o in m.modules())

net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(4, 4, 3))
tiny = FeatureLoss(net, [1], [1.])
pred,targ = blurred.clone().requires_grad_(),sharp.clone().requires_grad_()
tiny(pred, targ).backward()
assert pred.grad.norm()>0
test_is(targ.grad, None)
assert all(p.grad is None for p in net.parameters()) and not tiny.train().m_feat.training
with expect_fail(RuntimeError): tiny(sharp[...,:4,:4], sharp[...,:4,:4])
test_eq(hooks_left(tiny), 0)


# %% md [robust-why]
Any size will do, and fastai's tensor types as well. Under bf16 autocast, or through a network in bf16, the convolutions run in bf16 and the sums in float32: the loss agrees to a few percent. A copy, a copy by way of a file, and two threads at once give the same loss.

# %% [robust-test]
for h,w in ((1,1), (5,7), (33,50)): test_eq(loss(sharp[...,:h,:w], sharp[...,:h,:w]), 0)
b,s = blurred[:,:,:50,:33],sharp[:,:,:50,:33]
exact = loss(b, s)
test_eq(loss(TensorImageBW(b), s), exact)
for l in (deepcopy(loss), pickle.loads(pickle.dumps(loss))): test_eq(l(b, s), exact)
with ThreadPoolExecutor(2) as pool: test_eq(list(pool.map(lambda x: tiny(x, s).item(), (b,s)*20)), [tiny(b, s).item(), 0]*20)
with torch.autocast('cpu', dtype=torch.bfloat16): auto = loss(b, s)
half = FeatureLoss(deepcopy(m_feat).bfloat16(), layers, wgts)(b, s)
for l in (auto, half): test_eq(l.dtype, torch.float32); test_close(l/exact, 1, 0.05)
auto/exact-1, half/exact-1

# %% md [sees-why]
## What each part sees

A part of the loss is an instrument, and an instrument has a response. Here each is shown seven kinds of change, alone. All are drawn in the same unit: how much the part says for 12 µm of defocus counts as one, so a curve at 1 reads "as bad as 12 µm out of focus". The pixels are black, activations solid, Gram matrices dashed, from the shallow layer (blue) to the deep (green).

# %% [sees]
def shifted(x, px):
    turn = torch.exp(-2j*torch.pi*px*torch.fft.fftfreq(x.shape[-1]))
    return torch.fft.ifft(torch.fft.fft(x)*turn).real

one,target = field[:1],sharp[:1]
c,peak = contrast(target),target.max()
z = torch.randn(target.shape, generator=torch.Generator().manual_seed(0))
ways = {'defocus (µm)': (lambda um: defocused(one, um), (0,1,2,4,8,12,20,32)),
        'shift (px)': (lambda px: defocused(shifted(one, px), 0), (0,.25,.5,1,2,3)),
        'noise (of the contrast)': (lambda s: target+s*c*z, (0,.05,.1,.2,.4)),
        'gain': (lambda g: g*target, (.5,.75,1,1.25,1.5)),
        'offset (of the contrast)': (lambda o: target+o*c, (-.4,-.2,0,.2,.4)),
        'clipped at (of the maximum)': (lambda m: target.clamp(max=m*peak), (1,.8,.6,.4))}

# %% [sees-curves]
probe = FeatureLoss(m_feat, layers, [1]*3, unit=contrast, gram=1)
def costs(loss, x, y):
    with torch.no_grad(): loss(x, y)
    return pd.Series({n: getattr(loss, n).item() for n in loss.metric_names})

as_bad = costs(probe, defocused(one, 12), target)
curves = {k: pd.DataFrame({v: costs(probe, change(v), target)/as_bad for v in values}).T for k,(change,values) in ways.items()}
_,axs = plt.subplots(2, 3, figsize=(11,6), sharey=True)
for ax,(k,d) in zip(axs.flat, curves.items()): d.plot(ax=ax, xlabel=k, ylim=(0,2), legend=False, style=['k']+[f'C{i}{s}' for i in range(3) for s in ('-','--')])
axs[0,0].legend(fontsize=8); plt.tight_layout()

# %% [sees-table]
d,shift,noise,gain,offset,clip = curves.values()
sees = pd.DataFrame({'4 µm': d.loc[4], '32 µm': d.loc[32], '1 px': shift.loc[1], 'noise 0.1': noise.loc[.1], 'gain 0.75': gain.loc[.75], 'gain 1.25': gain.loc[1.25], 'offset 0.2': offset.loc[.2], 'clipped': clip.loc[.6]})
(_,p),rest = next(sees.iterrows()),sees.iloc[1:]
feat,gram = (rest.filter(like=k, axis=0) for k in ('feat','gram'))
assert (d.diff().loc[1:]>0).all().all() and (rest['4 µm']>p['4 µm']).all() and (rest['32 µm']<p['32 µm']).all()
assert (gram['1 px']<p['1 px']/2).all() and feat['1 px'].max()>p['1 px']
assert (gram['gain 1.25']>p['gain 1.25']).all() and (rest['offset 0.2']<p['offset 0.2']).all()
sees.round(2)

# %% md [sees-read]
READ

# %% md [invent-why]
## The mean or an invention?

Back to the nine answers. A network that does not know the grain can answer with their mean, or make one up. Which of the two does each part prefer, compared with the eight it was not? Above 1 the invention costs more.

INV

# %% [invent]
def guessed(guess): return costs(probe, guess.expand(8,-1,-1,-1), answers[1:])

invented,meant = guessed(answers[:1]),guessed(mean)
invention = invented/meant
assert invention['pixel']>1 and (invention.filter(like='gram')<1).all()
invention.to_frame('invention / mean').T.round(2)

# %% md [layers-why]
## Which layers

LAY

# %% [layers]
def flops(net):
    with FlopCounterMode(display=False) as count: net(torch.zeros(1, 1, 64, 64))
    return count.get_total_flops()

def field_of_view(net):
    seen,step = 1,1
    for m in net:
        if isinstance(m, nn.Conv2d): seen += 2*step
        if isinstance(m, nn.MaxPool2d): seen,step = seen+step,2*step
    return seen

test_eq([field_of_view(m_feat[:i+1]) for i in layers], [5, 14, 48])
test_eq([field_of_view(_blank(vgg16_bn)[:i+1]) for i in (5,12,22,32,42)], [5, 14, 40, 92, 196])

# %% [layers-table]
taps = [i for i,m in enumerate(m_feat) if isinstance(m, nn.ReLU)]
every = FeatureLoss(m_feat, taps, [1]*len(taps), unit=contrast, gram=1)
shown = {'4 µm': defocused(one, 4), '32 µm': defocused(one, 32), '1 px': defocused(shifted(one, 1), 0), 'noise 0.1': target+.1*c*z}
table = pd.DataFrame({k: costs(every, x, target) for k,x in shown.items()}).div(costs(every, defocused(one, 12), target), axis=0)
about = pd.DataFrame({'sees (px)': [field_of_view(m_feat[:i+1]) for i in taps], 'arithmetic': [flops(m_feat[:i+1])/flops(m_feat) for i in taps]}, index=taps)
pd.concat({'': about, **{k: table.filter(like=k, axis=0).set_axis(taps) for k in ('feat','gram')}}, axis=1).rename_axis('layer').round(2)

# %% md [layers-read]
LAYREAD

# %% md [calibrate-why]
## What each layer counts

The weights 5, 15 and 2 are right for one network, torchvision's VGG-16-BN, and for photographs. The activations of another differ by factors, the Gram matrices by their squares. So say instead what part of the loss each layer should make up, on images at a typical distance from focus, and solve for the weights. With $P$, $F_i$ and $G_i$ the unweighted pixel, feature and Gram terms and $g$ the 5000 of lesson 7, layer $i$ makes up the share $s_i$ of the loss when $w_iF_i+g\,w_i^2G_i=s_iP/(1-\sum_j s_j)$: a quadratic equation for each weight.

# %% [calibrate]
#| export
def calibrate(
    loss:FeatureLoss, # Its `wgts` are set in place
    blurred:Tensor, # Images out of focus (n, 1, h, w), 12 µm say, in the unit used in training
    sharp:Tensor, # The same in focus
    shares:list=None, # Of the loss, per layer, each above 0 and together below 1, the pixels get the rest; None for equal ones
)->FeatureLoss: # The same loss
    "Weigh the layers so that each makes up its share of the loss on these images; raises `ValueError` where that cannot be"
    n = len(loss.layers)
    shares = shares or [1/(n+1)]*n
    if len(shares)!=n or min(shares)<=0 or sum(shares)>=1: raise ValueError(f'{shares} are no shares of {n} layers: give {n} numbers above 0 that add up to less than 1')
    probe = FeatureLoss(loss.m_feat, loss.layers, [1]*n, loss.unit, gram=1)
    with torch.no_grad(): probe(blurred, sharp)
    p,*parts = (getattr(probe, k).item() for k in probe.metric_names)
    if min(p, *parts[::2])<=0: raise ValueError('The blurred images do not differ from the sharp ones in every layer: give pairs that are out of focus and in focus')
    targets = [s*p/(1-sum(shares)) for s in shares]
    loss.wgts = [2*t/(f+(f*f+4*loss.gram*g*t)**0.5) for t,f,g in zip(targets, parts[::2], parts[1::2])]
    return loss

# %% md [shares-why]
`FeatureLoss.shares` says how the last call was made up.

# %% [shares]
#| export
@patch
def shares(self:FeatureLoss)->dict: # From `metric_names` to fractions that add up to 1
    "What each part made up of the loss when it was last called, which has to be above 0"
    parts = {n: getattr(self, n).item() for n in self.metric_names}
    return {n: v/sum(parts.values()) for n,v in parts.items()}

# %% [calibrate-test]
cal = calibrate(FeatureLoss(m_feat, layers, wgts), blurred, sharp, [.1,.2,.3])
cal(blurred, sharp)
s = cal.shares()
test_close([s['pixel'], *(s[f'feat_{i}']+s[f'gram_{i}'] for i in range(3))], [.4,.1,.2,.3], 1e-4)
with expect_fail(ValueError, 'no shares of 3 layers'): calibrate(cal, blurred, sharp, [.5,.5,.5])
with expect_fail(ValueError, 'do not differ'): calibrate(cal, sharp, sharp)

# %% md [sweep-why]
## How much Gram?

What drives training is not what a part adds to the loss, but what it adds to the *gradient*. So take both, near focus and far from it: each part's value, and the norm of its gradient at the prediction. Both are proportional to what the part is multiplied by, so one measurement does for all weights.

# %% [pull]
def pull(loss, x, y):
    u = loss.unit(y)
    x = (x/u).requires_grad_()
    return pd.Series([torch.autograd.grad(p.sum(), x, retain_graph=True)[0].norm().item() for p in loss.parts(x, y/u)], loss.metric_names)

def factors(loss): return pd.Series([1, *(f for w in loss.wgts for f in (w, loss.gram*w**2))], loss.metric_names)

measured = {(k,f'{um} µm'): f(probe, defocused(one, um), target) for k,f in (('loss',costs),('gradient',pull)) for um in (4,24)}
test_close(costs(scaled := FeatureLoss(m_feat, layers, wgts, unit=contrast), defocused(one, 4), target)/(measured['loss','4 µm']*factors(scaled)), [1]*7, 1e-4)

# %% md [sweep-table-why]
First what is multiplied with lesson 7's weights, then with calibrated ones, for several values of `gram`. On the left the share of all Gram matrices in the loss and in the gradients, then that of the pixels. The last column asks the loss as a whole whether it would rather have the mean of the answers or an invented one.

# %% [sweep]
def calibrated(**kwargs): return calibrate(FeatureLoss(m_feat, layers, wgts, unit=contrast, **kwargs), blurred, sharp)

def described(loss):
    f = factors(loss)
    shares = {k: v*f/(v*f).sum() for k,v in measured.items()}
    return {(f'{part} in the {k}',um): v.filter(like=part).sum() for part in ('gram','pixel') for (k,um),v in shares.items()} | {('invention','/ mean'): (invented*f).sum()/(meant*f).sum()}

rows = {f'lesson 7, gram={g:g}': FeatureLoss(m_feat, layers, wgts, unit=contrast, gram=g) for g in (5e3,50,0)}
rows |= {f'calibrated, gram={g:g}': calibrated(gram=g) for g in (5e3,500,50,0)}
sweep = pd.DataFrame({k: described(l) for k,l in rows.items()}).T
assert sweep['invention','/ mean'].iloc[3:].is_monotonic_increasing
sweep.round(2)

# %% md [sweep-read]
SWEEP



# %% md [users-why]
### On your own images

Nothing in this depends on the network. With torchvision's VGG-16-BN only the weights that come out are others; here with random ones, so that nothing is downloaded. `blurred` and `sharp` are a batch of your own pairs, `dls.one_batch()` for instance. Layers 5, 12 and 22 see 5, 14 and 40 pixels; lesson 7's own, 22, 32 and 42, see 40, 92 and 196, whole groups of nuclei rather than the rim of one.

# %% [users-random]
scaled = rows['calibrated, gram=50']
test_close(scaled(3*blurred, 3*sharp)/scaled(blurred, sharp), 1, 1e-4)
users = calibrate(FeatureLoss(*vgg_features(None, layers=[5,12,22]), unit=contrast, gram=50), blurred, sharp)
users(blurred, sharp)
test_close(users.shares()['pixel'], .25, 1e-4)
pd.DataFrame({'VGG-16-BN, random': users.wgts, 'the one at hand': scaled.wgts}, index=['shallow','middle','deep']).T.round(3)

# %% [users-imagenet]
#| eval: false
calibrate(FeatureLoss(*vgg_features(layers=[5,12,22]), unit=contrast, gram=50), blurred, sharp)

# %% md [real-why]
Do weights calibrated on simulated nuclei fit real ones? Where the folder named by `REFOCUS_DATA` holds in-focus fields of BBBC006, these are blurred by the same 12 µm, and each layer's share should stay within 0.1 of a quarter.

# %% [real]
def shares_on(x):
    x = x/defocused(x, 12).amax((1,2,3), keepdim=True)
    scaled(defocused(x, 12), defocused(x, 0))
    return scaled.shares()

def real_fields(folder):
    ims = np.stack([read_image(p).pixels[:320,:320].astype(np.float32) for p in sorted(folder.glob('*.tif'))])[:,None]
    return torch.tensor(ims-np.quantile(ims, 0.001, axis=(2,3), keepdims=True))

folder = Path(os.environ.get('REFOCUS_DATA', ''))/'bbbc006/in_focus_w1'
tables = {'simulated': shares_on(field)} | ({'real sharp, simulated blur': shares_on(real_fields(folder))} if folder.is_dir() else {})
shares_at_12 = pd.DataFrame(tables).T
for i in range(3): test_close(shares_at_12[f'feat_{i}']+shares_at_12[f'gram_{i}'], 0.25, 0.1)
shares_at_12.round(3)

# %% md [cost-why]
## What it costs

The least a feature loss can cost is its passes through the network: the target forward, the prediction forward, and back to the pixels. A second cell below times one training step's share of `FeatureLoss` against just these, on one thread, all jobs in turn, and takes medians of its processor time, so that whatever else the computer does counts for little.

First the passes: what they are worth in arithmetic, beside a matrix product, and what could be done differently.

# %% [timing]
#| slow
def in_turn(jobs, rounds=7):
    times = {k: [] for k in jobs}
    for _ in range(rounds):
        for k,f in jobs.items():
            start = time.process_time(); f(); times[k].append(time.process_time()-start)
    return pd.Series({k: np.median(v[1:]) for k,v in times.items()})

def passes(net, x, t):
    with torch.no_grad(): t = net(t)
    o = net(x.clone().requires_grad_())
    o.backward(o.detach()-t)

def in_one_batch(net, x, t):
    o,t = net(torch.cat([x.clone().requires_grad_(), t])).chunk(2)
    o.backward(o.detach()-t.detach())

# %% md [folded-why]
One idea is better than it looks: the three equal channels and the normalisation could be folded into the first convolution. Its zero padding stands for the mean grey of ImageNet, not for black, so a bias cannot do it at the border; a second input channel that is 1 where there is an image can.

# %% [folded]
#| slow
class Folded(nn.Module):
    def __init__(self, vgg):
        super().__init__()
        w = vgg[0].weight/vgg.std[None]
        self.w,self.b,self.rest = torch.stack([w.sum(1), -(w*vgg.mean[None]).sum(1)], 1),vgg[0].bias,nn.Sequential(*list(vgg)[1:])
    def forward(self, x): return self.rest(F.conv2d(torch.cat([x, torch.ones_like(x)], 1).contiguous(memory_format=torch.channels_last), self.w, self.b, padding=1))

test_close(Folded(m_feat)(sharp), m_feat(sharp), 1e-4)

# %% [passes]
#| slow
torch.set_num_threads(1)
x,t = (torch.rand(8, 1, 128, 128, generator=torch.Generator().manual_seed(i)) for i in range(2))
rows_first = deepcopy(m_feat).to(memory_format=torch.contiguous_format)
in_place = deepcopy(m_feat)
for m in in_place:
    if isinstance(m, nn.ReLU): m.inplace = True
nets = {'as they are': m_feat, 'channels first': rows_first, 'ReLUs in place': in_place, 'folded first convolution': Folded(m_feat), 'weights not frozen': deepcopy(m_feat).requires_grad_(True)}
a = torch.rand(1024, 1024)
jobs = {k: partial(passes, net, x, t) for k,net in nets.items()} | {'both in one batch': partial(in_one_batch, m_feat, x, t), 'matrix product': lambda: a@a}
seconds = in_turn(jobs)

# %% [passes-table]
#| slow
with FlopCounterMode(display=False) as count: passes(m_feat, x, t)
gflop = pd.Series({'as they are': count.get_total_flops()/1e9, 'matrix product': 2*1.024**3})
pd.DataFrame({'time / as they are': seconds/seconds['as they are'], 'GFLOP': gflop, 'rate / matrix product': (gflop/seconds)/(gflop/seconds)['matrix product']}).loc[list(jobs)].round(2).fillna('')

# %% md [passes-read]
PASSES

# %% [step]
#| slow
def step(loss): loss(x.clone().requires_grad_(), t).backward()
def plain_gram(o):
    o = o.flatten(2)
    return o@o.mT/o[0].numel()
def two_products(loss):
    with mock.patch(f'{FeatureLoss.__module__}.gram_matrix', plain_gram): step(loss)

whole,old = (FeatureLoss(n, layers, wgts) for n in (m_feat, rows_first))
cut = {k: FeatureLoss(FrozenVGG(*deepcopy(list(m_feat)[:layers[k-1]+1])), layers[:k], wgts[:k]) for k in (1,2)}
jobs = {'VGG passes': partial(passes, m_feat, x, t), 'FeatureLoss': partial(step, whole), 'plain Gram': partial(two_products, whole), 'plain Gram, channels first': partial(two_products, old)}
jobs |= {f'FeatureLoss to layer {layers[k-1]}': partial(step, l) for k,l in cut.items()}
seconds = in_turn(jobs)
assert seconds['FeatureLoss']<1.5*seconds['VGG passes']
(seconds/seconds['VGG passes']).to_frame('time / VGG passes').round(2)

# %% md [step-read]
STEP


# %% md [fastai-why]
## In a `Learner`

fastai's `LossMetrics` turns attributes of the loss into columns, measured on the validation set, so `metric_names` is all it needs. The learner moves the loss to its device, and `get_preds` gets its number per image.

# %% [learner]
set_seed(0)
pairs = list(zip(blurred, sharp))
dls = DataLoaders.from_dsets(pairs, pairs, bs=2, device='cpu', num_workers=0)
learn = Learner(dls, nn.Conv2d(1, 1, 3, padding=1), loss_func=scaled, metrics=LossMetrics(scaled.metric_names))
with learn.no_bar(), learn.no_logging(): learn.fit(1, lr=1e-3)
pd.DataFrame([learn.recorder.values[-1]], columns=learn.recorder.metric_names[1:-1]).round(3)

# %% [learner-test]
valid,*parts = learn.recorder.values[-1][1:]
test_close(sum(parts)/valid, 1, 1e-4)
with learn.no_bar(): *_,each = learn.get_preds(with_loss=True)
test_eq(each.shape, (4,))
test_close(each.mean()/valid, 1, 1e-4)
test_eq(hooks_left(scaled), 0)

