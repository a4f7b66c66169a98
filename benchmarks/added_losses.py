"Added losses beside the label's and alone, on small toy birds, by validation (`python benchmarks/added_losses.py [--seeds 1] [--epochs 5] [--only 'supcon alone']`)"
import argparse
import numpy as np, torch
from fgvc_fast.all import AddLoss, accuracy, fine_grained_learner, metric_loss, partial, toy_birds
from _table import spread, table

def added(**kwargs): return lambda: AddLoss(**kwargs)

settings = {'label only': None} | {f'{k} alone': added(loss=k, alone=True) for k in ('arcface','supcon','triplet','proxy_anchor')} | {
    'arcface alone, scale 16': added(loss=partial(metric_loss, 'arcface', scale=16), alone=True)} | {
    f'label + {w:g} × {k}': added(loss=k, weight=w) for k,w in (('supcon',.3), ('arcface',.03), ('center',.003), ('center',.03), ('confusion',1.), ('confusion',10.), ('mutual_channel',.005), ('mutual_channel',1.), ('focal',1.))}

def run(data, cb, seed, epochs, per_class, size=64):
    "Accuracy, accuracy by the loss's own class vectors where it has some, and three measures of the rows"
    torch.manual_seed(seed)
    learn = fine_grained_learner(data.dls(size, seed=seed, num_workers=0, per_class=per_class), 'toy_resnet', metrics=accuracy)
    with learn.no_bar(), learn.no_logging():
        learn.fit_phases(epochs, cbs=cb)
        rows,y = learn.embeddings('valid')
        m = learn.retrieval_metrics().iloc[1]
    inner = getattr(getattr(cb, 'loss', None), 'loss', None)
    own = (inner.get_logits(rows).argmax(1)==y).float().mean().item() if hasattr(inner, 'get_logits') else np.nan
    return [learn.validate()[1], own, m['5-NN accuracy'], m['recall@1'], m['mAP@R']]

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--epochs', type=int, default=5)
    parser.add_argument('--only', nargs='+', default=list(settings))
    parser.add_argument('--size', type=int, default=64)
    args = parser.parse_args()
    data,rows = toy_birds(families=3, species=4, per_class=50, size=96),[]
    for name in args.only:
        pairs = 'supcon' in name or 'triplet' in name
        res = 100*np.array([run(data, settings[name] and settings[name](), s, args.epochs, 4 if pairs else None, args.size) for s in range(args.seeds)])
        names = ('accuracy %','own vectors %','5-NN %','recall@1 %','mAP@R %')
        mean = res.mean(0).round(1)
        rows.append({'': name} | dict(zip(names, (spread(res[:,0]), *mean[1:]))))
        print(rows[-1], flush=True)
    print(data, f'· {args.epochs} epochs, {args.seeds} seeds')
    table(rows)

if __name__=='__main__': main()
