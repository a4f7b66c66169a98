"A species left out of training and added from a few pictures: by prototypes, or by a row imprinted in the head (`python benchmarks/few_shot.py [--seeds 4] [--epochs 6] [--shots 5] [--draws 10]`)"
import argparse
import numpy as np, torch
from fgvc_fast.all import fine_grained_data, fine_grained_learner
from torch.nn import functional as F
from _table import table

def rows_of(learn, items):
    "What the head gets of `items`, as it comes"
    model,dl = learn.model.eval(),learn.dls.test_dl(items, num_workers=0)
    with torch.no_grad(): return torch.cat([model.features(x) for x, in dl]).as_subclass(torch.Tensor)

def imprinted(head, rows, few):
    "Logits of `rows` from the linear `head` and one row more, along the mean of `few` and as long as the others are on average"
    with torch.no_grad():
        w = F.normalize(head.norm(few).mean(0), dim=0)*head.fc.weight.norm(dim=1).mean()
        return torch.cat([head(rows), (head.norm(rows) @ w + head.fc.bias.mean())[:,None]], 1)

def one(data, seed, epochs, shots, draws):
    "Accuracy (old, new) of the head, of an imprinted row and of prototypes, for each draw of `shots` pictures"
    new = data.vocab[7*seed % len(data.vocab)]
    torch.manual_seed(seed)
    learn = fine_grained_learner(data.drop(data.items.index[data.items.label==new]).dls(size=96, seed=seed, num_workers=0), 'toy_resnet')
    with learn.no_bar(), learn.no_logging(): learn.fit_phases(epochs)
    valid,pool = data['valid'],data['train'].query('label==@new')
    vocab = [*learn.dls.vocab, new]
    y = torch.tensor([vocab.index(o) for o in valid.label])
    is_new = y==len(vocab)-1
    v,p = [rows_of(learn, [data.path(i) for i in o.index]) for o in (valid, pool)]
    def right(scores): return [(scores.argmax(1)==y)[o].float().mean().item() for o in (~is_new, is_new)]
    with torch.no_grad(): res = {'head': [right(learn.model.head(v))], 'imprinted row': [], 'prototypes': []}
    for draw in range(draws):
        i = torch.randperm(len(p), generator=torch.Generator().manual_seed(draw))[:shots]
        res['imprinted row'].append(right(imprinted(learn.model.head, v, p[i])))
        protos = learn.prototypes({new: [data.path(pool.index[int(o)]) for o in i]})
        res['prototypes'].append(right(F.normalize(v) @ protos.rows.T))
    return res

def main():
    parser = argparse.ArgumentParser(description=__doc__)
    for k,v in dict(seeds=4, epochs=6, shots=5, draws=10).items(): parser.add_argument(f'--{k}', type=int, default=v)
    args = parser.parse_args()
    data = fine_grained_data('toy_birds')
    runs = [one(data, s, args.epochs, args.shots, args.draws) for s in range(args.seeds)]
    rows = []
    for k in runs[0]:
        by_seed = 100*np.array([np.mean(o[k], 0) for o in runs])
        (old,new),(so,sn) = by_seed.mean(0).round(1),by_seed.std(0).round(1)
        rows.append({'': k, 'old species %': old, 'spread of seeds': so, 'new species %': new, 'spread of seeds ': sn})
    print(data, f'· validation, {args.seeds} species left out in turn, {args.shots} pictures drawn {args.draws} times, {args.epochs} epochs')
    table(rows)

if __name__=='__main__': main()
