"Few-shot parts, long tails, other names, two data sets in one, labels that look the same"
import numpy as np, os, pandas as pd, pytest, warnings
from contextlib import nullcontext
from PIL import Image
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.all import FineGrainedData
from fgvc_fast.datasets.all import fine_grained_data, read_folder, toy_birds
from fgvc_fast.data.table import stratified_split

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

# Files and groups stay whole

def boxes_of(files, per_file, classes=4, two=False, seed=0):
    "A table with a row per box, in any order; in some files boxes of two classes (`two`)"
    rows = [(f'{i}.jpg', f'class {(i+(two and k==1 and i%3==0))%classes}', f'person {i//7}') for i in range(files) for k in range(per_file)]
    return pd.DataFrame(rows, columns=['path','label','who']).sample(frac=1, random_state=seed).reset_index(drop=True)

def whole(data, by='path'): return data.items.groupby(by).split.nunique().max()==1

@pytest.mark.parametrize('two', [False,True])
@pytest.mark.parametrize('seed', range(4))
def test_carve_divides_files(two, seed):
    items = boxes_of(80, 3, two=two, seed=seed)
    items.loc[::2,'path'] = './'+items.path[::2] # another spelling of the same file
    data = FineGrainedData(items, seed=seed)
    key = items.path.str.removeprefix('./')
    assert whole(data, key) and whole(data.split(.2, test=.2, seed=seed), key) and whole(data.merge(data.drop([0])).split(.3), key)
    for share in (.1,.25,.5):
        n = pd.Series(stratified_split(items.assign(split='train'), share, seed)=='valid').groupby([items.label, key]).first().groupby('label').agg(['sum','size'])
        assert ((n['sum']-n['size']*share).abs()<=(1.5 if two else .5)).all(), n # to the nearest file, where a file has one label

@pytest.mark.parametrize('share', [.01,.1,.5,.85,.9,.99])
def test_carve_against_its_rule(share):
    items = table(range(1, 31), 0, 0).items.assign(split='train')
    got = (stratified_split(items, share, 3)=='valid').groupby(items.label).sum().tolist()
    assert got==[min(max(round(n*share), n>=3), n-1) for n in range(1, 31)]

def test_small_classes():
    two = FineGrainedData(table([2,2,2], 0, 0).items.assign(split='train'), valid=0)
    assert two.split(.1).items.split.value_counts().to_dict()==dict(train=3, valid=3) and counts(two.split(.1)).tolist()==[1,1,1]
    assert counts(FineGrainedData(table([2,2,3], 0, 0).items.assign(split='train'), valid=0).split(.1), 'valid').to_dict()=={'class 002':1} # where one class has three, those of two stay
    with pytest.raises(FineGrainedError, match="Nothing could be put aside for 'valid': every class has a single picture"): table([1,1,1], 0, 0).split(.1)

def test_the_remedy_that_the_error_names(tmp_path):
    for i in range(6): Image.new('RGB', (8,8)).save(tmp_path/f'{i}.png')
    data = FineGrainedData(pd.DataFrame(dict(path=[f'{i}.png' for i in range(6)], label=list('aabbcc'))), tmp_path, valid=0)
    with pytest.raises(FineGrainedError, match=r'`data\.split\(valid=\.1\)` makes some'): data.dls(size=8, cache=False, num_workers=0)
    assert len(data.split(valid=.1).dls(size=8, cache=False, num_workers=0).valid_ds)==3

@pytest.mark.parametrize('seed', range(6))
def test_groups_stay_whole(seed, capsys):
    "However uneven the groups, and whatever is done afterwards"
    rng = np.random.default_rng(seed)
    who = rng.choice(60, 600, p=(w := 1/np.arange(1, 61))/w.sum())
    items = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(600)], label=[f'class {i}' for i in rng.integers(0, 6, 600)], who=[f'person {i}' for i in who]))
    data = FineGrainedData(items, by='who', seed=seed)
    new = data.split(.15, test=.15, seed=seed)
    said = capsys.readouterr().out
    for o in (data, new, new.split(.3), new.subset(classes=3), new.subset(per_class=20), new.long_tail(5), new.drop(range(50)),
        FineGrainedData(items, by='who').merge(FineGrainedData(items, by='who'))):
        assert whole(o, 'who') and o.by=='who'
    for s,share in dict(train=.7, valid=.15, test=.15).items():
        got = new.items.label[new.items.split==s].value_counts()/items.label.value_counts()
        assert (got-share).abs().max()<.12 and (got>0).all() # of each class about as much as was asked for
        assert f'{s} {len(new[s])/600:.1%} ({new[s].who.nunique()} groups)' in said
    assert new.items.equals(data.split(.15, test=.15, seed=seed).items) and not new.items.equals(data.split(.15, test=.15, seed=seed+1).items)

def test_groups_at_a_level():
    birds = toy_birds(families=2, species=2, per_class=8, size=32)
    items = birds.items.assign(who=[f'person {i%5}' for i in range(len(birds))], split='train')
    data = FineGrainedData(items, birds.root, birds.levels, by='who').at_level('family')
    assert whole(data, 'who') and whole(data.split(.3), 'who') and data.split(.3).by=='who'
    twice = FineGrainedData(items.assign(order='bird'), birds.root, ['order','family','label'], valid=0).at_level('family').at_level('order')
    assert twice.items.finest.tolist()==items.label.tolist() and twice.vocab==['bird']

def test_groups_that_nobody_named():
    items = boxes_of(60, 1)
    items.loc[items.index[::2],'who'] = None
    data = FineGrainedData(items, by='who').split(.3)
    assert data.items.dropna(subset='who').groupby('who').split.nunique().max()==1 and data.items[data.items.who.isna()].split.nunique()==2
    one = FineGrainedData(items.assign(who='Ann'), by='who')
    assert not len(one['valid'])
    with pytest.raises(FineGrainedError, match="no group of 'who' can go"): one.split(.2)
    with pytest.raises(FineGrainedError, match='is of two groups'): FineGrainedData(pd.concat([items, items.assign(who='Ben')]), by='who')
    for by in ('nobody', 'label', 5, ['who']):
        with pytest.raises(FineGrainedError, match='by='): FineGrainedData(items, by=by)

def test_merged_data_says_what_is_divided():
    a,b = FineGrainedData(boxes_of(20, 1).assign(split='train'), valid=0),FineGrainedData(boxes_of(20, 1).assign(split='test'), valid=0)
    with pytest.warns(UserWarning, match='20 files stand in more than one split'): both = a.merge(b)
    assert (both.check(progress=False).problem=='same file in two splits').sum()==40
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        a.merge(a)

def test_few_and_tails_count_files():
    data = FineGrainedData(boxes_of(80, 3), valid=0)
    few = data.subset(per_class=5)
    assert few.items.groupby('label').path.nunique().tolist()==[5]*4 and len(few)==60
    tail = data.long_tail(4)
    assert sorted(tail.items.groupby('label').path.nunique())==[int(20/4**(k/3)) for k in (3,2,1,0)]

@pytest.mark.parametrize('box', [(20,0,21,9), (21,2,30,9), (0,10,9,11), (-1,0,0,9), (0,-1,9,0), (-9,-9,-5,-5)])
def test_boxes_wholly_outside(tmp_path, box):
    Image.new('RGB', (20,10)).save(tmp_path/'0.png')
    data = FineGrainedData(pd.DataFrame([('0.png','a',-1,-1,21,11), ('0.png','b',*box)], columns=['path','label','x0','y0','x1','y1']), tmp_path, valid=0)
    assert data.check(progress=False).query('problem=="box outside the image"').row.tolist()==[1]

@pytest.mark.parametrize('way', ['absolute','double','dotted','around','link'])
def test_one_file_written_in_two_ways(tmp_path, way):
    (tmp_path/'r'/'a').mkdir(parents=True)
    (tmp_path/'other').symlink_to(tmp_path/'r')
    for i in range(12): Image.new('RGB', (8,8), (i,0,0)).save(tmp_path/'r'/'a'/f'{i}.png')
    plain = [f'a/{i}.png' for i in range(12)]
    ways = dict(absolute=f'{tmp_path}/r/', double=f'{tmp_path}//r//', dotted=f'{tmp_path}/r/a/../', around='../r/', link=f'{tmp_path}/other/')
    rows = plain+[ways[way]+o for o in plain]
    data = FineGrainedData(pd.DataFrame(dict(path=rows, label='a')), tmp_path/'r').split(.3)
    files = [os.path.realpath(data.path(i)) for i in range(24)]
    assert len(set(files))==12 and data.items.split.groupby(files).nunique().max()==1 and (data.items.split=='valid').any()
    far = FineGrainedData(pd.DataFrame(dict(path=[str(tmp_path/'elsewhere.png'), 'a/0.png'], label='a')), tmp_path/'r', valid=0)
    assert far.path(0)==tmp_path/'elsewhere.png'
    one,two = (FineGrainedData(pd.DataFrame(dict(path=p, label='a')), tmp_path/'r', valid=0) for p in (plain, [f'{tmp_path}/r/{o}' for o in plain]))
    assert two.items.path.tolist()==[f'{tmp_path}/r/{o}' for o in plain], 'a table of whole paths alone stays as it is'
    assert one.merge(two).items.path.nunique()==12

@pytest.mark.parametrize('way', ['absolute','relative','file','merge'])
def test_one_file_by_way_of_a_link(tmp_path, way):
    "Whoever has all paths whole, or relative through a linked folder, or a link to the file itself; two roots that are one"
    (tmp_path/'r'/'a').mkdir(parents=True)
    (tmp_path/'other').symlink_to(tmp_path/'r')
    (tmp_path/'r'/'b').mkdir()
    for i in range(12):
        Image.new('RGB', (8,8), (i,0,0)).save(tmp_path/'r'/'a'/f'{i}.png')
        (tmp_path/'r'/'b'/f'link {i}.png').symlink_to(f'../a/{i}.png')
    def rows(f): return [f(i) for i in range(12)]
    def made(paths, root, split='train'): return FineGrainedData(pd.DataFrame(dict(path=paths, label='a', split=split)), root, valid=0)
    if way=='merge':
        plain = rows('a/{}.png'.format)
        with pytest.warns(UserWarning, match='12 files stand in more than one split'): data = made(plain, tmp_path/'r').merge(made(plain, tmp_path/'other', 'test'))
    else:
        ways = dict(absolute=(f'{tmp_path}/r/a/{{}}.png', f'{tmp_path}/other/a/{{}}.png'), relative=('r/a/{}.png','other/a/{}.png'), file=('r/a/{}.png','r/b/link {}.png'))[way]
        paths = rows(ways[0].format)+rows(ways[1].format)
        data = made(paths, tmp_path).split(.3)
        assert made(paths[12:], tmp_path).items.path.tolist()==paths[12:], 'who has one way of writing keeps it'
    assert len(set(data.groups))==12 and data.items.path.nunique()==12
    assert way=='merge' or data.items.split.groupby(data.groups).nunique().max()==1 and (data.items.split=='valid').any()

# Columns by other names

@pytest.mark.parametrize('new', [dict(split='Split'), dict(split=' SPLIT '), dict(x0='X0', y0='Y0', x1='X1', y1='Y1'), dict(is_valid='Is_Valid')])
def test_columns_in_another_case(new):
    df = pd.DataFrame(dict(path=['0.jpg','1.jpg','2.jpg'], label=['a','b','a'], x0=0., y0=0., x1=[5.,6,7], y1=9.))
    df = df.assign(is_valid=[False,True,False]) if 'is_valid' in new else df.assign(split=['train','valid','test'])
    want = FineGrainedData(df, valid=0).items
    pd.testing.assert_frame_equal(FineGrainedData(df.rename(columns=new), valid=0).items[want.columns], want)
    with pytest.raises(FineGrainedError, match='drop one'):
        FineGrainedData(pd.concat([df.rename(columns=new), df[[*new]].rename(columns=str.upper).rename(columns=lambda o: f'{o}  ')], axis=1), valid=0)

@pytest.mark.parametrize('values,wrong', [(['train','train','test'], True), (['Training','val',None], True), (['dev','dev','dev'], False), (['train']*3, False), (['train','test','tree'], True), (['valid','valid',''], False), ([0,1,2], False), ([None]*3, False)])
def test_a_split_by_another_name(values, wrong):
    "It would be passed over, and the test trained on"
    df = pd.DataFrame(dict(path=['0.jpg','1.jpg','2.jpg'], label=['a','b','a'], subset=values))
    for known in (dict(split='train'), dict(is_valid=False)): FineGrainedData(df.assign(**known), valid=0)
    FineGrainedData(df[['path']].assign(label=[str(o) for o in values]), valid=0) # names of classes
    with pytest.raises(FineGrainedError, match="Column 'subset' says .*into a column 'split'") if wrong else nullcontext(): FineGrainedData(df, valid=0)

@pytest.mark.parametrize('name,values,wrong', [('is_train',[1,1,0],True), ('Test',['yes','no','no'],True), ('is_val',[True,False,None],True), ('train',[0,1,2],False), ('female',[1,0,1],False), ('is_train',[1,1,1],False)])
def test_a_split_of_yes_and_no(name, values, wrong):
    df = pd.DataFrame({'path': ['0.jpg','1.jpg','2.jpg'], 'label': ['a','b','a'], name: values})
    with pytest.raises(FineGrainedError, match=f"Column '{name}' says .*into a column 'split'") if wrong else nullcontext(): FineGrainedData(df, valid=0)

# What check says

def test_check_says(tmp_path):
    for i in range(6): Image.new('RGB', (20,10), (i,0,0)).save(tmp_path/f'{i}.png')
    Image.new('RGB', (20,10), (0,0,0)).save(tmp_path/'copy.png')
    rows = [('0.png','a','F','train',0,0,9,9), ('0.png','b','F','train',0,0,9,9), ('1.png','a','G','train',0,0,9,9), ('1.png','a','G','train',0,0,9,9), ('2.png',' ','F','train',0,0,9,9),
        ('3.png','b','F','train',0,0,9,9), ('3.png','b','F','test',1,1,9,9), ('copy.png','a','F','valid',0,0,9,9), ('4.png','b','F','train',9.1,.1,9.9,.8), ('5.png','b','F','train',0,0,99,9)]
    data = FineGrainedData(pd.DataFrame(rows, columns=['path','label','family','split','x0','y0','x1','y1']), tmp_path, ['family','label'])
    said = data.check(progress=False)
    got = said[said.row.notna()].groupby('problem').row.agg(list).to_dict()
    assert got=={'box of a pixel': [8], 'box outside the image': [9], 'empty label': [4], 'same file with two labels': [0,1,7], 'same row twice': [3], 'same file in two splits': [0,1,7,5,6]} | {'same file in two splits': got['same file in two splits']}
    assert sorted(got['same file in two splits'])==[0,1,5,6,7] and said.usable.all()
    assert said[said.problem=='label of two levels'].detail.tolist()==["label 'a' is of more than one family: F, G"]
    one = FineGrainedData(pd.DataFrame(dict(path=['0.png','1.png'], label='a')), tmp_path, valid=0).check(progress=False)
    assert one.problem.tolist()==['a single class']
    (tmp_path/'folder.png').mkdir()
    gone = FineGrainedData(pd.DataFrame(dict(path=['folder.png','1.png'], label=['a','b'])), tmp_path, valid=0).check(progress=False)
    assert gone[gone.problem=='missing file'][['row','detail']].values.tolist()==[[0,'that is a folder']]
    people = FineGrainedData(pd.DataFrame(dict(path=['0.png','1.png'], label='a', split=['train','test'], who='Ann')), tmp_path, by='who', valid=0).check(progress=False)
    assert people[people.problem=='group in two splits'].detail.tolist()==["who 'Ann': train, test"]

# Calls

d3 = table([3,3], 2, 2)
fam = FineGrainedData(d3.items.assign(family='f'), 'photos', ['family','label'])
calls = {f: (o, args) for f,o,args in [
    ('drop', d3, [dict(rows=o) for o in ([999], [-1], [0,.5], ['x'], [None], [True,False], 'x', None, 3.5, range(14), [[1]])]),
    ('split', d3, [dict(valid=o) for o in (-.1, 1, 2, None, 'x', True, np.nan)]+[dict(test=-1), dict(valid=.5, test=.5), dict(seed='x'), dict(seed=-1), dict(seed=.5),
    dict(by='nix')]),
    ('subset', d3, [dict(classes=o) for o in (0, 99, -1, .5, True, [], ['nix'], [5], 'nix', {}, object())]+[dict(per_class=o) for o in (0, -1, .5, 'x', True)]+[dict(level='nix'),
    dict(level=None), dict(seed=-1), dict(seed='x'), dict(classes=1, level=5)]),
    ('at_level', fam, [dict(level=o) for o in ('nix', None, 5, ['family'])]),
    ('rename', d3, [dict(names=o) for o in (None, 5, 'x', ['a'], {'nix':'x'}, {5:'x'}, {'class 000':None}, {'class 000':''}, {'class 000':7}, lambda o: None, lambda o: 5)]+[dict(names={}, level='nix')]),
    ('long_tail', d3, [dict(ratio=o) for o in (0, -1, .5, np.nan, np.inf, 'x', None)]+[dict(seed='x'), dict(seed=-1)]),
    ('path', d3, [dict(row=o) for o in (-1, 99, None, 'x', .5, True)]), ('picture', d3,
    [dict(row=o) for o in (-1, 99, None)]+[dict(row=0, size=o) for o in (0, 'x', (1,), (0,5), (1,2,3))]),
    ('show', d3, [dict(n=0), dict(n='x'), dict(cols=0), dict(size=0), dict(size='x'), dict(rows=[]), dict(rows=5), dict(rows=[99]), dict(rows=['x']), dict(seed='x')]),
    ('__getitem__', d3, [dict(split=o) for o in ('val', None, 5, [0])])]}
@pytest.mark.parametrize('call,i', [(f,i) for f,(_,a) in calls.items() for i in range(len(a))])
def test_wrong_arguments(call, i):
    data,args = calls[call]
    before = data.items.copy()
    with pytest.raises(FineGrainedError) as e: getattr(data, call)(**args[i])
    assert any(str(o) in str(e.value) for o in (*args[i], 'rows', 'row', 'class', 'level', 'name')), e.value
    pd.testing.assert_frame_equal(data.items, before)

@pytest.mark.parametrize('kwargs', [dict(items=o) for o in (None, [], {}, 'x')]+[dict(root=o) for o in (None, 5, b'x')]+[dict(levels=o)
    for o in ('family', [], ['label','family'], ['family'], [5,'label'], ['label','label'], ['path','label'], ['nix','label'])]
    +[dict(card=o) for o in (5, 'x', [])]+[dict(valid=o) for o in (None, 'x', -1, 1, np.nan, True)]+[dict(seed=o) for o in ('x', -1, .5, None)]+[dict(parts=5)])
def test_wrong_data_sets(kwargs):
    with pytest.raises(FineGrainedError): FineGrainedData(**{**dict(items=table([3,3], 0, 0).items.assign(split='train', family='f')), **kwargs})
