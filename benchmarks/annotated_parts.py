"Do marked parts help on toy birds, and are they found? (`python benchmarks/annotated_parts.py [--seeds 3] [--epochs 8] [--per_class 10]`)"
import argparse, time
import numpy as np, torch
from fgvc_fast.all import AnnotatedPartPool, Phase, fine_grained_data, fine_grained_learner, partial
from _table import table

def found(learn, dl, near=.1):
    "Share of the visible parts of the pictures in `dl` that are predicted no farther than `near` of the picture's side from where they are"
    model,far = learn.model.eval(),[]
    with torch.no_grad():
        for x,points,_ in dl: far.append((model.pool.locate(model.maps(x))-points.as_subclass(torch.Tensor)).norm(dim=2))
    far = torch.cat(far)
    return (far[~far.isnan()]<=near).float().mean().item()

def trained(data, pool, seed, epochs):
    "Accuracy on valid and test, and the share of parts found on the test"
    learn = fine_grained_learner(data.dls(size=96, seed=seed, parts=pool!='avg'), 'toy_resnet', pool=pool)
    with learn.no_bar(), learn.no_logging():
        learn.fit_phases([Phase('head', 2, lr=1e-2), Phase('all', epochs-2, lr=5e-3, ratio=3)])
        preds,targs = learn.get_preds()
        valid,test = (preds.argmax(1)==targs).float().mean().item(),learn.test().top1.item()
    return valid,test,np.nan if pool=='avg' else found(learn, learn.dls.test_dl(data['test'].index, with_labels=True))

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--epochs', type=int, default=8)
    parser.add_argument('--per_class', type=int, help='training pictures of each class; all, unless said')
    parser.add_argument('--given', type=float, nargs='+', default=[0,.5,1])
    args = parser.parse_args()
    data,rows = fine_grained_data('toy_birds'),[]
    if args.per_class: data = data.subset(per_class=args.per_class)
    n = data.parts.part.nunique()
    pools = {'avg': 'avg'} | {f'annotated_parts, given={o:g}': partial(AnnotatedPartPool, parts=n, given=o) for o in args.given}
    for name,pool in pools.items():
        start = time.time()
        res = 100*np.array([trained(data, pool, s, args.epochs) for s in range(args.seeds)])
        mean,spread = res.mean(0).round(1),res.std(0).round(1)
        rows.append({'': name, 'valid %': mean[0], 'test %': mean[1], 'spread': spread[1], 'parts found %': mean[2], 'seconds': round((time.time()-start)/args.seeds), 'seeds': args.seeds})
    print(data, f'· {torch.get_num_threads()} threads, {args.epochs} epochs')
    table(rows)

if __name__=='__main__': main()
