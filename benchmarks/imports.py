"`import fgvc_fast.all` against `from fastai.vision.all import *`: seconds, each in a process of its own, in turn"
import subprocess, sys, time
from statistics import median
from _table import goals, table

cmds = {'from fastai.vision.all import *': [], 'import fgvc_fast.all': []}

def seconds(cmd):
    "Wall time of `cmd` in a fresh interpreter"
    t = time.perf_counter()
    subprocess.run([sys.executable, '-W', 'ignore', '-c', cmd], check=True)
    return time.perf_counter()-t

for i in range(6):
    for cmd,ts in cmds.items():
        s = seconds(cmd)
        if i: ts.append(s) # the first round only warms the disk
fastai,ours = cmds.values()
table([dict(command=c, median_s=median(ts), min_s=min(ts), max_s=max(ts)) for c,ts in cmds.items()])
ratio = median(o/f for f,o in zip(fastai, ours))
goals(('fgvc_fast.all at most 1.15 × fastai.vision.all', f'{ratio:.3f} ×', ratio<=1.15))
