"The same picture twice: against a slow loop, over kinds of copies, across splits, with broken files and banners"
import numpy as np, pandas as pd, pytest
from PIL import Image, ImageFilter, ImageOps
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.all import FineGrainedData
from fgvc_fast.data.duplicates import _near, _surplus

def scene(seed, size=(240,180)):
    "A picture of soft patches, like no other"
    x = np.random.default_rng(seed).integers(0, 256, (9,12,3), dtype=np.uint8)
    return Image.fromarray(x).resize(size, Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(1))

@pytest.fixture
def make(tmp_path):
    "Write `pictures` {name: picture} and make a data set of them"
    def f(pictures, card=None, **cols):
        for k,im in pictures.items(): im.save(tmp_path/k)
        items = pd.DataFrame(dict(path=list(pictures), label='wren', split='train'))
        return FineGrainedData(items.assign(**cols), tmp_path, valid=0, card=card)
    return f

def rows(pairs): return [tuple(o) for o in pairs[['row_a','row_b']].to_numpy()]

@pytest.mark.parametrize('n,bits', [(1,64), (2,256), (150,256), (5000,32)])
def test_near_against_a_loop(n, bits):
    rng = np.random.default_rng(n)
    a,b = (rng.choice(np.float32([-1,1]), (n,bits)) for _ in range(2))
    most = {32:4, 64:20, 256:110}[bits]
    got = np.concatenate(list(_near(a, b, most)), 1)
    want = [(i, j, d) for i in range(n) for j,d in enumerate((a[i]!=b).sum(1)) if j>i and d<=most]
    assert got.T.tolist()==[list(o) for o in want]
    assert n<100 or len(want)>5

def test_copies_are_found_and_others_not(make):
    ims = {f'{i}.png': scene(i) for i in range(30)}
    x = scene(0)
    copies = {'small.jpg': x.resize((120,90)), 'grey.png': x.convert('L'), 'mirror.jpg': ImageOps.mirror(x), 'bright.png': Image.eval(x, lambda v: min(v*5//4, 255)), 'big.webp': x.resize((700,525))}
    data = make({**ims, **copies})
    pairs = data.duplicates(progress=False)
    same = {0, *range(30, 35)}
    assert set(rows(pairs))=={(a,b) for a in same for b in same if a<b}
    mirrored = {o for o,m in zip(rows(pairs), pairs.mirrored) if m}
    assert mirrored=={o for o in rows(pairs) if 32 in o}
    assert not pairs.leak.any() and not pairs.labels_differ.any()

def test_worst_first(make):
    names = [f'{k}{i}.png' for k in 'abcd' for i in range(2)]
    data = make({n: scene(ord(n[0])) for n in names}, label=list('xx'+'xy'+'xy'+'xx'), split=['train','train', 'train','train', 'train','valid', 'test','train'])
    pairs = data.duplicates(progress=False)
    assert rows(pairs)==[(7,6), (4,5), (2,3), (0,1)] # into the test, into validation, two names, merely twice; train before test
    assert pairs.leak.tolist()==[True,True,False,False] and pairs.labels_differ.tolist()==[False,True,True,False]
    assert (pairs.split_a[0], pairs.split_b[0], pairs.path_b[0])==('train','test','d0.png')

def test_unreadable_files_are_named(make, tmp_path):
    data = make({f'{i}.jpg': scene(i//2) for i in range(6)})
    (tmp_path/'1.jpg').write_bytes((tmp_path/'0.jpg').read_bytes()[:900])
    (tmp_path/'2.jpg').write_text('<html>404</html>')
    (tmp_path/'3.jpg').unlink()
    with pytest.warns(UserWarning, match='3 of 6 files give no picture and were not compared: 1.jpg, 2.jpg, 3.jpg'): pairs = data.duplicates(progress=False)
    assert rows(pairs)==[(4,5)] # rows keep their numbers
    for o in (0,4,5): (tmp_path/f'{o}.jpg').unlink()
    with pytest.warns(UserWarning, match='6 of 6'): assert data.duplicates(progress=False).empty

def test_a_banner_says_nothing(make):
    "One picture above two banners is one, if the card says that they are banners"
    def above(im, banner):
        res = banner.resize((240,300)).convert('RGB')
        res.paste(im, (0,0))
        return res
    ims = {'a.png': above(scene(1), Image.new('RGB', (1,1), 'white')), 'b.png': above(scene(1), scene(7)), 'c.png': above(scene(2), scene(7))}
    assert rows(make(ims, card=dict(banner=120)).duplicates(progress=False))==[(0,1)]
    assert rows(make(ims).duplicates(progress=False))==[]

def test_turned_pictures(make, tmp_path):
    "A copy that lies on its side with a note how to turn it is a copy"
    data = make({'up.png': scene(3), 'side.jpg': scene(3)})
    exif = Image.Exif()
    exif[0x0112] = 6
    scene(3).transpose(Image.Transpose.ROTATE_90).save(tmp_path/'side.jpg', exif=exif, quality=95)
    assert rows(data.duplicates(progress=False))==[(0,1)]

def test_labels_nobody_tells(make):
    data = make({f'{i}.png': scene(0) for i in range(2)}, label=['wren',None], split=['train','test'])
    pairs = data.duplicates(progress=False)
    assert pairs.leak.tolist()==[True] and pairs.labels_differ.tolist()==[False]
    data.show_duplicates(pairs)

def test_too_many_are_one_clear_error(make, monkeypatch):
    data = make({f'{i}.png': scene(i%2*i) for i in range(12)})
    monkeypatch.setattr('fgvc_fast.data.duplicates._most', 10)
    with pytest.raises(FineGrainedError, match=r'More than 10 pairs .* such as 0.png'): data.duplicates(progress=False)

def pairs_of(*ps, split, label=None):
    label = label or {}
    return pd.DataFrame([dict(row_a=a, row_b=b, split_a=split[a], split_b=split[b], labels_differ=label.get(a)!=label.get(b)) for a,b in ps])

def test_what_is_surplus():
    train = dict.fromkeys(range(9), 'train')
    assert _surplus(pairs_of((0,1), (1,2), (0,2), split=train))=={1,2}        # a group keeps its first
    assert _surplus(pairs_of((0,1), (1,2), split=train))=={1}                 # 2 is not like 0: dropping 1 is enough
    assert _surplus(pairs_of((0,5), split={0:'train', 5:'test'}))=={0}
    assert _surplus(pairs_of((5,0), split={0:'test', 5:'test'}))==set()       # never of the test
    assert _surplus(pairs_of((0,1), (0,2), (1,2), split={0:'train', 1:'valid', 2:'test'}))=={0,1}
    assert _surplus(pairs_of((0,1), split=train, label={0:'a', 1:'b'}))=={0,1}
    assert _surplus(pairs_of((0,1), split={0:'train', 1:'test'}, label={0:'a', 1:'b'}))=={0}

@pytest.mark.parametrize('seed', range(20))
def test_surplus_leaves_none_twice_and_no_more(seed):
    "Whatever the pairs: after it no two that look the same are left outside test, and whoever went had one that stays, or another name"
    rng = np.random.default_rng(seed)
    split = dict(enumerate(rng.choice(['train','valid','test'], 20, p=[.6,.2,.2])))
    label = dict(enumerate(rng.choice(list('aaaab'), 20)))
    ps = [(a,b) for a in range(20) for b in range(a+1, 20) if rng.random()<.12]
    gone = _surplus(pairs_of(*ps, split=split, label=label))
    assert all(split[o]!='test' for o in gone)
    for a,b in ps: assert a in gone or b in gone or split[a]==split[b]=='test'
    for o in gone:
        near = [b if a==o else a for a,b in ps if o in (a,b)]
        assert any(label[n]!=label[o] or n not in gone for n in near)

def test_pairs_of_another_table(make):
    data = make({f'{i}.png': scene(i//2) for i in range(4)})
    pairs = data.duplicates(progress=False)
    for f in ('drop_duplicates','show_duplicates'):
        with pytest.raises(FineGrainedError, match='another table'): getattr(data.drop([0]), f)(pairs)
        with pytest.raises(FineGrainedError, match='Not a table of pairs'): getattr(data, f)(pairs[['row_a']])
    with pytest.raises(FineGrainedError, match='row numbers or what `check` gave'): data.drop(pairs)
    assert data.drop_duplicates(pairs).items.path.tolist()==['0.png','2.png']
    with pytest.raises(FineGrainedError, match='no pair to show'): data.show_duplicates(pairs[:0])
