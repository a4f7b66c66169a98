"""One training step of our learner against a hand-written PyTorch loop on plain tensors in channels-last, same batch

    python benchmarks/step.py --bs 32 --size 128
"""
import argparse, time
import timm, torch
import torch.nn.functional as F
from statistics import median
from fastai.data.core import DataLoaders
from fgvc_fast.all import fine_grained_data, fine_grained_learner
from _table import goals, table

class Same:
    "A loader that gives one batch `n` times"
    device = torch.device('cpu')
    def __init__(self, b, n): self.b,self.n,self.bs,self.n_inp = b,n,len(b[0]),len(b)-1
    def __len__(self): return self.n
    def __iter__(self): return iter([self.b]*self.n)

def by_hand(arch, batch, classes):
    "A function that makes `n` training steps as one would write them"
    x,y = batch
    x = x.contiguous(memory_format=torch.channels_last)
    net = timm.create_model(arch, num_classes=classes).to(memory_format=torch.channels_last).train()
    opt = torch.optim.AdamW(net.parameters(), 1e-3)
    def go(n):
        for _ in range(n):
            loss = F.cross_entropy(net(x), y)
            loss.backward()
            opt.step()
            opt.zero_grad()
    return go

def ours(arch, batch, data):
    "The same through `Learner.fit`"
    learn = fine_grained_learner(data.dls(size=batch[0].shape[-1], num_workers=0), arch, pretrained=False)
    def go(n):
        learn.dls = DataLoaders(Same(batch, n), Same(batch, 0))
        with learn.no_bar(), learn.no_logging(): learn.fit(1, 1e-3)
    return go

def seconds(go, n):
    "Seconds for a step"
    t = time.perf_counter()
    go(n)
    return (time.perf_counter()-t)/n

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--rounds', type=int, default=9)
    p.add_argument('--steps', type=int, default=6)
    args = p.parse_args()
    data = fine_grained_data('toy_birds')
    batch = torch.rand(args.bs, 3, args.size, args.size),torch.randint(len(data.vocab), (args.bs,))
    rows,res = [],[]
    for arch in ('resnet18', 'mobilenetv2_100'):
        hand,our = by_hand(arch, batch, len(data.vocab)),ours(arch, batch, data)
        for go in (hand, our): go(2)
        pairs = [(seconds(hand, args.steps), seconds(our, args.steps)) for _ in range(args.rounds)] # in turn: the machine's speed drifts
        ratio = median(o/h for h,o in pairs)
        rows.append(dict(model=arch, by_hand_ms=median(h for h,_ in pairs)*1e3, ours_ms=median(o for _,o in pairs)*1e3, ratio=f'{ratio:.3f}'))
        res.append((f'{arch}: at most 1.05 × the loop', f'{ratio:.3f} ×', ratio<=1.05))
    table(rows)
    goals(*res)

if __name__=='__main__': main()
