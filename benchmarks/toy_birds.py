"Are toy birds as hard as they should be? Raw pixels, phased fine-tuning, and a model that is shown the part (`python benchmarks/toy_birds.py [--seeds 3] [--epochs 10]`)"
import argparse, time, warnings
import numpy as np, torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from fgvc_fast.all import FineGrainedData, Phase, fine_grained_data, fine_grained_learner
from _table import goals, spread, table

def linear(data, seed, size=32):
    "Logistic regression on raw pixels; of three strengths the one that is best on the test, in its favour"
    def pixels(df): return np.stack([np.asarray(Image.open(data.root/o).resize((size,size), Image.BILINEAR)).ravel() for o in df.path])/255
    test = data['test']
    train = data.items.drop(test.index)
    with warnings.catch_warnings():
        warnings.simplefilter('ignore') # "did not converge": more steps change nothing on the test
        return max(LogisticRegression(C=c, max_iter=100).fit(pixels(train), train.label).score(pixels(test), test.label) for c in (.01,.1,1))

def part_boxes(data, k=1.4):
    "The same pictures, whose box is now a square round the part that differs (`k` radii to each side)"
    p = data.items[['differs']].assign(item=data.items.index).merge(data.parts, left_on=['item','differs'], right_on=['item','part'])
    items = data.items.assign(x0=(p.x-k*p.r).clip(0).values, y0=(p.y-k*p.r).clip(0).values, x1=(p.x+k*p.r).values, y1=(p.y+k*p.r).values)
    return FineGrainedData(items, data.root, data.levels, data.parts, data.card)

def tuned(data, seed, epochs, **kwargs):
    "Phased fine-tuning from the weights of `toy_resnet`; the plan was chosen on the validation split"
    dls = data.dls(seed=seed, **kwargs)
    learn = fine_grained_learner(dls, 'toy_resnet')
    with learn.no_bar(), learn.no_logging():
        learn.fit_phases([Phase('head', 2, lr=1e-2), Phase('all', epochs-2, lr=5e-3, ratio=3)])
        return learn.test().top1.item()

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument('--seeds', type=int, default=1)
    parser.add_argument('--epochs', type=int, default=10)
    args = parser.parse_args()
    data,rows,accs = fine_grained_data('toy_birds'),[],[]
    models = {'linear on raw pixels': lambda s: linear(data, s),
        f'phased fine-tuning, {args.epochs} epochs': lambda s: tuned(data, s, args.epochs, size=96),
        f'shown the part, {args.epochs} epochs': lambda s: tuned(part_boxes(data), s, args.epochs, size=64, crop='box')}
    for name,f in models.items():
        n = 1 if name.startswith('linear') else args.seeds # nothing is random in it
        start = time.time()
        res = np.array([f(s) for s in range(n)])
        rows.append({'': name, 'test accuracy %': spread(100*res), 'seconds': round((time.time()-start)/n), 'seeds': n})
        accs.append(100*res.mean())
    print(data, f'· {torch.get_num_threads()} threads')
    table(rows)
    goals(*((f'{name} {o} {lim} %', f'{acc:.1f} %', acc<lim if o=='<' else acc>=lim) for name,acc,o,lim in zip(models, accs, ('<','>=','>='), (30,85,97))))

if __name__=='__main__': main()
