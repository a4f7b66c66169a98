"Few-shot parts, long tails, other names, two data sets in one, labels that look the same"
import numpy as np, pandas as pd, pytest
from PIL import Image
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.all import FineGrainedData, fine_grained_data, read_folder, toy_birds

def table(train, valid=3, test=5, **kwargs):
    "`train` pictures of each class, that do not exist"
    rows = [(f'{s}/{c:03}_{i}.jpg', f'class {c:03}', s) for c,n in enumerate(train) for s,k in (('train',n), ('valid',valid), ('test',test)) for i in range(k)]
    return FineGrainedData(pd.DataFrame(rows, columns=['path','label','split']), 'photos', **kwargs)

def counts(data, split='train'): return data[split].label.astype(object).value_counts()

# Few and fewer

@pytest.mark.parametrize('ways,shots', [(1,1), (5,1), (5,5), (20,100)])
def test_few_shot(ways, shots):
    data = table(range(1, 21))
    few = data.subset(classes=ways, per_class=shots, seed=3)
    assert len(few.vocab)==ways
    for c in few.vocab: assert counts(few)[c]==min(shots, counts(data)[c])
    for s in ('valid','test'):
        want = data[s]
        assert few[s].path.tolist()==want.path[want.label.isin(few.vocab)].tolist()
    assert not few.items.path.duplicated().any() and set(few.items.path)<=set(data.items.path)

def test_few_shot_tasks_differ_and_repeat():
    data = table([10]*30)
    tasks = [data.subset(classes=5, per_class=2, seed=s) for s in range(20)]
    assert len({tuple(o.vocab) for o in tasks})>15
    assert tasks[4].items.equals(data.subset(classes=5, per_class=2, seed=4).items)

@pytest.mark.parametrize('n,classes,ratio,total', [(5000,10,100,12406), (5000,10,10,20431), (500,100,100,10847), (500,100,10,19573)]) # CIFAR-LT's known totals
def test_long_tail_as_published(n, classes, ratio, total):
    tail = table([n]*classes, 1, 1).long_tail(ratio)
    assert len(tail['train'])==total
    assert sorted(counts(tail), reverse=True)==[int(n*(1/ratio)**(k/(classes-1))+1e-9) for k in range(classes)]

@pytest.mark.parametrize('ordered', [False,True])
def test_long_tail_keeps_the_rest(ordered):
    data = table([50]*12)
    if ordered: data = FineGrainedData(data.items.assign(label=pd.Categorical(data.items.label, data.vocab[::-1])), 'photos', valid=0)
    tail = data.long_tail(1000, seed=5)
    assert counts(tail).min()==1 and counts(tail).max()==50 and tail.vocab==data.vocab
    for s in ('valid','test'): assert tail[s].path.tolist()==data[s].path.tolist()
    assert tail.items.equals(data.long_tail(1000, seed=5).items)
    heads = {counts(data.long_tail(1000, seed=s)).index[0] for s in range(12)}
    assert len(heads)>4, 'which class is frequent is drawn'
    assert data.long_tail(1)['train'].path.tolist()==data['train'].path.tolist()

def test_long_tail_of_an_uneven_set():
    n = np.array([1,2,40,5,40,1,3,17])
    for seed in range(10):
        got = counts(table(n).long_tail(4, seed)).sort_index().to_numpy()
        assert (got>=1).all() and (got<=n).all() and got.max()<=40
        want = sorted(int(40/4**(k/7)) for k in range(8))
        assert (np.sort(got) <= want).all()

def test_long_tail_of_one_class_and_bad_ratios():
    assert len(table([7]).long_tail(100)['train'])==7
    for r in (0, .99, -3):
        with pytest.raises(FineGrainedError, match='so 1 or more'): table([7]).long_tail(r)

# Names

def test_rename_on_disk(tmp_path):
    for c in ('Wren','wren ','Robin'):
        (tmp_path/c).mkdir()
        for i in range(3): Image.new('RGB', (8,8)).save(tmp_path/c/f'{c.strip()}{i}.png')
    data = read_folder(tmp_path, valid=0)
    said = data.check(progress=False).query('problem=="labels that look the same"')
    assert said.detail.item().startswith("'Wren', 'wren '") and said.usable.all() and said.row.isna().all()
    tidy = data.rename(lambda o: o.strip().lower())
    assert tidy.vocab==['robin','wren'] and (tidy.items.label=='wren').sum()==6
    assert all(tidy.path(i).is_file() for i in range(9)) and data.vocab==['Robin','Wren','wren ']
    assert not (tidy.check(progress=False).problem=='labels that look the same').any()

@pytest.mark.parametrize('a,b,same', [('Wren','wren',True), ('House_Wren','house wren',True), ('Gray-crowned Finch','Gray  Crowned finch ',True), ('Gr\u00fcnfink','Gru\u0308nfink',True),
    ('Wren','Wrens',False), ('737-200','737-300',False), ('A','B',False)])
def test_labels_that_look_the_same(a, b, same):
    data = table([2,2]).rename(dict(zip(['class 000','class 001'], (a,b))))
    assert (data.check(progress=False).problem=='labels that look the same').any()==same

def test_rename_of_a_level_and_hidden_labels():
    birds = toy_birds(families=2, species=2, per_class=4, size=32)
    fam = birds.items.family.iloc[0]
    other = birds.rename({fam: 'Others'}, level='family')
    assert other.items.label.tolist()==birds.items.label.tolist() and (other.items.family=='Others').sum()==(birds.items.family==fam).sum()
    hidden = FineGrainedData(pd.DataFrame(dict(path=list('abc'), label=['x','y',None], split=['train','train','test'])), valid=0)
    assert hidden.rename({'x':'y'}).items.label.isna().tolist()==[False,False,True] and hidden.rename({'x':'y'}).vocab==['y']
    with pytest.raises(FineGrainedError, match="no family called 'emu'"): birds.rename({'emu':'x'}, level='family')

# Two become one

@pytest.fixture
def folders(tmp_path):
    "Two folders of pictures whose colours tell which is which"
    for k,(f,classes) in enumerate({'a':['wren','kea'], 'deep/b':['wren','emu']}.items()):
        for j,c in enumerate(classes):
            (tmp_path/f/c).mkdir(parents=True)
            for i in range(4): Image.new('RGB', (8,8), (k*100,j*100,i*10)).save(tmp_path/f/c/f'{i}.png')
    return tmp_path

def test_every_row_has_its_own_file(folders, monkeypatch):
    a,b = read_folder(folders/'a'),read_folder(folders/'deep'/'b')
    both = a.merge(b)
    assert both.vocab==['kea','wren','emu'] and len(both)==16
    for i in range(16):
        old = a.picture(i) if i<8 else b.picture(i-8)
        assert np.array_equal(both.picture(i), old)
    assert both.items.split.tolist()==[*a.items.split, *b.items.split]
    assert not both.check(progress=False).row.notna().any()
    monkeypatch.chdir(folders/'deep')
    near = read_folder('../a').merge(read_folder('b')) # roots said in other ways
    assert [near.path(i).read_bytes() for i in range(16)]==[both.path(i).read_bytes() for i in range(16)]
    monkeypatch.chdir(folders)
    assert near.path(15).is_file(), 'wherever one stands later'
    saved = folders/'both.csv'
    both.items.to_csv(saved, index=False)
    assert fine_grained_data(saved, root=both.root).path(15).is_file()

def test_three_and_itself(folders):
    a,b = read_folder(folders/'a'),read_folder(folders/'deep'/'b')
    assert a.merge(b, a).items.path.tolist()==a.merge(b).merge(a).items.path.tolist()
    assert a.merge().items.path.tolist()==a.items.path.tolist() and a.merge().root==folders/'a'
    twice = a.merge(a)
    assert len(twice)==16 and len(twice.duplicates(0, progress=False))>=8

def test_what_only_one_knows():
    birds = toy_birds(families=2, species=2, per_class=4, size=32)
    plain = FineGrainedData(birds.items[['path','label','split','family']], birds.root, birds.levels, valid=0)
    for x,y,start in ((birds,plain,0), (plain,birds,len(plain))):
        both = x.merge(y)
        boxed = both.items.x0.notna().to_numpy()
        assert boxed[start:start+len(birds)].all() and boxed.sum()==len(birds)
        assert both.parts.item.unique().tolist()==list(range(start, start+len(birds)))
        assert both.parts[['part','x','y']].reset_index(drop=True).equals(birds.parts[['part','x','y']].reset_index(drop=True))
    part = birds.merge(plain).drop(range(3))
    want = birds.parts[birds.parts.item==3]
    assert part.parts[part.parts.item==0][['x','y']].to_numpy().tolist()==want[['x','y']].to_numpy().tolist()
    both.show(range(2), parts=True)

def test_cards():
    def of(**card): return table([1], card=card)
    both = of(title='A', licence='CC0', counts=dict(train=1), size=2., notes='old', banner=0).merge(of(title='B', licence='CC BY', notes='old', citation='B 2020'))
    assert both.card==dict(title='A + B', licence='A: CC0; B: CC BY', notes='old', citation='B: B 2020') and both.banner==0
    same = of(banner=20, licence='CC0').merge(of(banner=20, licence='CC0'))
    assert same.banner==20 and same.card['licence']=='CC0' and same.card['title']=='photos'

@pytest.mark.parametrize('card,msg', [(dict(banner=20), 'Banners differ: 0 rows of pixels and 20')])
def test_banners(card, msg):
    with pytest.raises(FineGrainedError, match=msg): table([1]).merge(table([1], card=card))

def test_levels():
    birds = toy_birds(families=2, species=2, per_class=4, size=32)
    with pytest.raises(FineGrainedError, match='Levels differ: family → label and label'): birds.merge(table([1]))
    fam = birds.items.family.iloc[0]
    with pytest.raises(FineGrainedError, match=rf"is of more than one family: {fam}, Others.*level='family'"): birds.merge(birds.rename({fam: 'Others'}, level='family'))
    assert birds.merge(birds).at_level('family').vocab==birds.at_level('family').vocab

def test_attributes_stay_with_their_data_set():
    a,b = table([2]),table([2])
    a.attributes,a.certainty = pd.DataFrame(dict(crest=[0,1])),pd.DataFrame(dict(crest=[4,4]))
    assert a.merge(b).attributes is None and a.merge(b).certainty is None
    assert a.merge(a.drop([0])).attributes is a.attributes

def test_a_picture_reads_small(tmp_path):
    im = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40,60,3), dtype=np.uint8))
    im.save(tmp_path/'a.png')
    one = pd.DataFrame(dict(path=['a.png','gone.png'], label='wren'))
    for banner in (0,10):
        data = FineGrainedData(one, tmp_path, valid=0, card=dict(banner=banner))
        assert data.picture(0).size==(60,40-banner) and data.picture(0, (6,5)).size==(6,5)
        with pytest.raises(FineGrainedError, match='gone.png does not exist'): data.picture(1)
