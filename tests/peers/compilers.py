"""What compilers would add to the network of a model, beside PyTorch as it is: `pip install onnx onnxruntime openvino` beside this project

python tests/peers/compilers.py nuclei
"""
import sys, tempfile, time
from copy import deepcopy
from pathlib import Path
import numpy as np, torch, torch.nn as nn
from refocus_nbdev.refocus.files import Refocuser

SHAPE,REPEATS = (136,176),15 # Of 4 x 4 pixels each, of a 696 x 520 image and the margin it gets

class Unet(nn.Module):
    "What a compiler can take: the network after its deconvolutions"
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, x, code): return self.model.correction(x, code)

def as_it_is(model, inputs): return lambda: model(*inputs).numpy()

def compiled(model, inputs): return as_it_is(torch.compile(model), inputs)

def exported(model, inputs):
    "An ONNX file of a model"
    path = Path(tempfile.mkdtemp())/'model.onnx'
    plain = deepcopy(model).to(memory_format=torch.contiguous_format)
    torch.onnx.export(plain, inputs, path, input_names=['x','code'], opset_version=17, dynamo=False)
    return path

def onnx_runtime(model, inputs):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(exported(model, inputs), options, providers=['CPUExecutionProvider'])
    named = dict(zip(('x','code'), (i.numpy() for i in inputs)))
    return lambda: session.run(None, named)[0]

def open_vino(model, inputs):
    import openvino
    core = openvino.Core()
    run = core.compile_model(core.read_model(exported(model, inputs)), 'CPU', {'INFERENCE_NUM_THREADS':torch.get_num_threads(), 'PERFORMANCE_HINT':'LATENCY'})
    arrays = [i.numpy() for i in inputs]
    return lambda: run(arrays)[0]

def seconds(f):
    start = time.perf_counter()
    return f(),time.perf_counter()-start

@torch.inference_mode()
def main(name):
    model = Unet(Refocuser.load(name, 'cpu').model).eval()
    inputs = torch.randn(1, model.model.stem[0].in_channels, *SHAPE),torch.rand(1, 32)
    runs,first,reference = {},{},model(*inputs).numpy()
    for f in (as_it_is, compiled, onnx_runtime, open_vino):
        def start():
            runs[f.__name__] = f(model, inputs)
            return runs[f.__name__]()
        y,first[f.__name__] = seconds(start)
        assert np.abs(y-reference).max()<1e-4, f.__name__
    times = {n: [] for n in runs}
    for _ in range(REPEATS):
        for n,run in runs.items(): times[n].append(seconds(run)[1])
    median = {n: np.median(t) for n,t in times.items()}
    for n,t in median.items(): print(f'{n:14} first answer after {first[n]:5.1f} s, then {1e3*t:4.0f} ms, {median["as_it_is"]/t:.2f} times as fast as it is')

if __name__=='__main__': main(sys.argv[1])
