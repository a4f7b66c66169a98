"""How much longer does a training step take with an augmentation of the batch, or with weights averaged?

    python benchmarks/mixing.py --arch mobilenetv2_100 --bs 32 --size 128

Each row takes turns with the plain step, on one batch; loading is not counted.
"""
import argparse, torch
from fastai.data.core import DataLoaders
from fgvc_fast.all import EMA, AttentionCrop, Cutout, Erase, Mix, fine_grained_data, fine_grained_learner
from statistics import median
from _table import table
from step import Same, seconds

kinds = {'mixup': lambda: Mix(mixup=.4), 'cutmix': lambda: Mix(cutmix=1.), 'snapmix': lambda: Mix(snapmix=5.), 'Cutout': Cutout, 'Erase': Erase,
    'AttentionCrop': AttentionCrop, 'Attend, every picture': lambda: AttentionCrop(crop=.5, drop=.5), 'EMA': EMA}

def stepper(arch, batch, data, cb=None):
    learn = fine_grained_learner(data.dls(size=batch[0].shape[-1], num_workers=0), arch, pretrained=False, cbs=cb)
    def go(n):
        learn.dls = DataLoaders(Same(batch, n), Same(batch, 0))
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    go(2)
    return go

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--arch', default='mobilenetv2_100')
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--rounds', type=int, default=7)
    p.add_argument('--steps', type=int, default=4)
    args = p.parse_args()
    data = fine_grained_data('toy_birds', families=2, species=2, per_class=12)
    batch = torch.rand(args.bs, 3, args.size, args.size),torch.randint(len(data.vocab), (args.bs,))
    plain,rows = stepper(args.arch, batch, data),[]
    for name,cb in kinds.items():
        ours = stepper(args.arch, batch, data, cb())
        pairs = [(seconds(plain, args.steps), seconds(ours, args.steps)) for _ in range(args.rounds)]
        ratio = [b/a for a,b in pairs]
        rows.append({'step with': name, '× plain': f'{median(ratio):.2f}', 'from': f'{min(ratio):.2f}', 'to': f'{max(ratio):.2f}', 'ms': f'{1000*median(b for _,b in pairs):.0f}'})
    table(rows)

if __name__=='__main__': main()
