"""Grad-CAM of many pictures beside pytorch-grad-cam: the same maps of the same layer, and how many of them a second

    python benchmarks/cam.py

256 pictures of 224 px in batches of 32, of a ResNet-18 and a ViT-tiny without weights (the work is the same); ours and theirs take turns, and the ratio is the median over `--rounds`.
"""
import argparse, numpy as np, time, torch
from fastai.learner import Learner
from fastai.losses import CrossEntropyLossFlat
from fgvc_fast.all import cam, fine_grained_data, fine_grained_model
from pytorch_grad_cam import GradCAM
from _table import goals, table

def asked(logits): return logits.max()-logits.mean() # as ours: the class that is said, and not the mean of all

def tokens(o): return o[:,1:].transpose(1, 2).unflatten(2, (14,14))

# name: (their layer, how they fold it)
archs = {'resnet18': (lambda m: m.layer4[-1], None), 'vit_tiny_patch16_224': (lambda m: m.norm, tokens)}

def measured(f, batches):
    "(maps, pictures a second)"
    start = time.perf_counter()
    maps = torch.cat([f(x) for x in batches])
    return maps,len(maps)/(time.perf_counter()-start)

def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--pictures', type=int, default=256)
    p.add_argument('--bs', type=int, default=32)
    p.add_argument('--rounds', type=int, default=3)
    args = p.parse_args()
    dls = fine_grained_data('toy_birds', per_class=max(args.pictures//20+1, 4), size=224).dls(size=224, bs=args.bs, num_workers=0, aug='none', device='cpu')
    items = list(dls.train_ds.items)+list(dls.valid_ds.items)+list(dls.data['test'].index)
    batches = [x.as_subclass(torch.Tensor) for x, in dls.test_dl(items[:args.pictures], bs=args.bs, num_workers=0)]
    rows,lines = [],[]
    for arch,(layer,reshape) in archs.items():
        torch.manual_seed(0)
        learn = Learner(dls, fine_grained_model(arch, len(dls.vocab), pretrained=False, img_size=224), loss_func=CrossEntropyLossFlat())
        learn.model.eval()
        rate = []
        with GradCAM(model=learn.model, target_layers=[layer(learn.model.body.model)], reshape_transform=reshape) as theirs:
            def their(x): return torch.from_numpy(theirs(input_tensor=x, targets=[asked]*len(x)))
            for f in (cam_of(learn), their): f(batches[0])
            for _ in range(args.rounds):
                (a,fast),(b,slow) = measured(cam_of(learn), batches),measured(their, batches)
                rate.append((fast,slow,fast/slow))
        fast,slow,ratio = np.median(rate, 0)
        off = (a-b).abs().max().item()
        rows.append({'body': arch, 'pictures': len(a), 'ours, pictures/s': f'{fast:.1f}', 'theirs, pictures/s': f'{slow:.1f}', 'ratio': f'{ratio:.2f}', 'largest difference': f'{off:.1e}'})
        lines += [(f'{arch}: same maps (< 1e-3)', f'{off:.1e}', off<1e-3), (f'{arch}: at least 2 x their pictures a second', f'{ratio:.2f} x', ratio>=2)]
    table(rows)
    goals(*lines)

def cam_of(learn): return lambda x: cam(learn, x)

if __name__=='__main__': main()
