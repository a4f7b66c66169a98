"""50 classes of CUB-200-2011, the same weights, split, epochs and image size: our learner against fastai's own

    python benchmarks/cub50.py --epochs 5 --size 128 --seeds 1
"""
import argparse, numpy as np, time
from fastai.vision.all import *
from fgvc_fast.all import fine_grained_data, fine_grained_learner
from safetensors.torch import load_file
from _table import goals, shared, table

stats,arch = ([.5]*3, [.5]*3),'mobilenetv2_100'

def ours(data, weights, epochs, size, bs):
    "Our defaults"
    learn = fine_grained_learner(data.dls(size=size), arch, weights=weights, stats=stats, pad_type='same', metrics=accuracy)
    yield learn
    learn.fit_phases(epochs)
    yield learn

def fastai(data, weights, epochs, size, bs):
    "fastai's defaults, helped to the weights, their padding and their statistics"
    it = data.items[data.items.split!='test'].assign(is_valid=lambda d: d.split=='valid', path=lambda d: d.path.astype(str), label=lambda d: d.label.astype(str))
    dls = ImageDataLoaders.from_df(it, path=data.root, fn_col='path', label_col='label', valid_col='is_valid', bs=bs,
        item_tfms=Resize(size), batch_tfms=[*aug_transforms(), Normalize.from_stats(*stats)])
    learn = vision_learner(dls, arch, pretrained=False, metrics=accuracy, pad_type='same')
    state = {k: v for k,v in load_file(weights).items() if not k.startswith('classifier')}
    learn.model[0].model.load_state_dict(state)
    learn.freeze()
    yield learn
    learn.fine_tune(epochs-1)
    yield learn

def run(make, data, weights, epochs, size, bs, seed):
    "(test accuracy, seconds, training pictures a second)"
    set_seed(seed)
    t = time.perf_counter()
    steps = make(data, weights, epochs, size, bs)
    learn = next(steps)
    with learn.no_bar(), learn.no_logging(): learn = next(steps)
    secs = time.perf_counter()-t
    test = data['test']
    if make is ours:
        with learn.no_bar(): acc = learn.test().top1.item()
    else:
        dl = learn.dls.test_dl(test.assign(path=test.path.astype(str), label=test.label.astype(str)), with_labels=True)
        with learn.no_bar(): preds,targs = learn.get_preds(dl=dl)
        acc = accuracy(preds, targs).item()
    return acc*100,secs,len(data['train'])*epochs/secs

def main():
    p = argparse.ArgumentParser(description=__doc__)
    p.add_argument('--epochs', type=int, default=5)
    p.add_argument('--size', type=int, default=128)
    p.add_argument('--seeds', type=int, default=1)
    p.add_argument('--bs', type=int, default=64, help="of fastai's loaders (its default)")
    args = p.parse_args()
    weights,data = shared('weights', 'mobilenetv2_100.imagenet1k.safetensors'),fine_grained_data(shared('data', 'cub50', 'CUB_200_2011'))
    print(data)
    rows,means = [],{}
    for name,make in (('fastai vision_learner.fine_tune', fastai), ('fgvc_fast fine_grained_learner.fit_phases', ours)):
        res = np.array([run(make, data, weights, args.epochs, args.size, args.bs, seed) for seed in range(args.seeds)])
        means[name] = res.mean(0)
        rows.append(dict(learner=name, test_top1=f'{res[:,0].mean():.1f} ± {res[:,0].std():.1f}', seconds=f'{res[:,1].mean():.0f}', pictures_per_s=f'{res[:,2].mean():.0f}', epochs=args.epochs, size=args.size, seeds=args.seeds))
    table(rows)
    (fa,fs,_),(oa,os_,_) = means.values()
    goals(('test top-1 at least 8 points above fastai', f'{oa-fa:+.1f} points', oa-fa>=8), ('wall time below fastai', f'{os_/fs:.2f} ×', os_<fs))

if __name__=='__main__': main()
