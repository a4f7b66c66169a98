"Folders, CSVs and tables as people have them: what they mean, or one error that names the row"
import contextlib, io, itertools, numpy as np, os, pandas as pd, pytest
from pathlib import Path
from PIL import Image
from fgvc_fast.core import FineGrainedError
from fgvc_fast.data.all import FineGrainedData
from fgvc_fast.datasets.all import fine_grained_data, read_folder
from fgvc_fast.data.table import split_names

def put(root, *names):
    "Pictures (or folders, or other files) called `names`"
    for i,o in enumerate(names):
        (root/o).parent.mkdir(parents=True, exist_ok=True)
        if o.endswith('/'): (root/o).mkdir()
        elif o.endswith(('.pth','.txt')): (root/o).write_text('x')
        else: Image.new('RGB', (8,8), (i%256,i//256,7)).save(root/o, format='PNG')
    return root

def quiet(root, **kwargs):
    "The folder's data set, and what was said"
    with contextlib.redirect_stdout(io.StringIO()) as said: data = read_folder(root, valid=0, **kwargs)
    return data,said.getvalue()

splits = [f'{s}/{c}/{s[:2]}{c[0]}.jpg' for s in ('train','valid','test') for c in ('wren','kea')]
def rows(data): return dict(zip(data.items.path, zip(data.items.split, data.items.label)))
want = {o: (o.split('/')[0], o.split('/')[1]) for o in splits}

@pytest.mark.parametrize('beside,said', [(['models/tmp.pth'],'models'), (['models/best/0.jpg'],'models'), (['loose.jpg'],'loose.jpg'), (['train/x.jpg'],'train/x.jpg'), (['masks/wren/0.jpg'],'masks'), (['models/','notes.txt'],'models')])
def test_split_folders_win(tmp_path, beside, said):
    data,words = quiet(put(tmp_path, *splits, *beside))
    assert rows(data)==want and said in words
    assert any(said in o for o in data.check(progress=False).query('problem=="left out"').detail)

@pytest.mark.parametrize('train,valid,test', [('Train','Valid','Test'), ('TRAIN','VAL','TEST'), ('training','validation','testing'), ('train','dev','test')])
@pytest.mark.parametrize('above', ['', 'images/', 'a/b/'])
def test_names_and_depth_of_splits(tmp_path, train, valid, test, above):
    called = dict(train=train, valid=valid, test=test)
    data,words = quiet(put(tmp_path, *[above+o.replace(o.split('/')[0], called[o.split('/')[0]], 1) for o in splits]))
    assert sorted(zip(data.items.split, data.items.label))==sorted(want.values()) and not words

def test_classes_first(tmp_path):
    data,_ = quiet(put(tmp_path, 'wren/train/1.jpg', 'wren/val/2.jpg', 'kea/train/3.jpg', 'kea/Test/4.jpg'))
    assert rows(data)=={'wren/train/1.jpg':('train','wren'), 'wren/val/2.jpg':('valid','wren'), 'kea/train/3.jpg':('train','kea'), 'kea/Test/4.jpg':('test','kea')}

def test_a_test_beside_classes(tmp_path):
    data,_ = quiet(put(tmp_path/'a', 'wren/1.jpg', 'kea/2.jpg', 'test/wren/3.jpg', 'test/kea/4.jpg'))
    assert data.vocab==['kea','wren'] and data.items.split.value_counts().to_dict()==dict(train=2, test=2)
    data,words = quiet(put(tmp_path/'b', 'wren/1.jpg', 'kea/2.jpg', 'test/3.jpg', 'train/4.jpg')) # pictures without names; and things that run on rails
    assert data.vocab==['kea','train','wren'] and 'test/3.jpg' in words
    with pytest.raises(FineGrainedError, match="no class in common"): read_folder(put(tmp_path/'c', 'wren/1.jpg', 'test/owl/3.jpg'))
    with pytest.raises(FineGrainedError, match="holds test, valid but no folder 'train'"): read_folder(put(tmp_path/'d', 'val/wren/1.jpg', 'test/wren/3.jpg'))
    with pytest.raises(FineGrainedError, match=r'several folders with splits in them \(A, B\)'): read_folder(put(tmp_path/'e', 'A/train/wren/1.jpg', 'B/train/wren/3.jpg'))

def test_what_is_no_picture(tmp_path):
    put(tmp_path, 'wren/1.jpg', 'kea/2.JFIF', 'kea/3.avif', 'kea/4.jp2', 'wren/.ipynb_checkpoints/1.jpg', 'wren/.thumbnails/a/1.jpg', '.git/kea/1.jpg', '__MACOSX/wren/._1.jpg', 'wren/._1.jpg', 'wren/0.jpg/n.txt', 'empty/', 'models/a.pth')
    os.mkfifo(tmp_path/'kea'/'9.jpg')
    data,words = quiet(tmp_path)
    assert set(data.items.path)=={'wren/1.jpg','kea/2.JFIF','kea/3.avif','kea/4.jp2'} and data.vocab==['kea','wren']
    assert 'empty' in words and 'models' in words

def test_links(tmp_path):
    put(tmp_path, 'far/1.jpg', 'far/deep/2.jpg', 'd/wren/0.jpg', 'd/kea/5.jpg')
    for link,to in {'wren/far':tmp_path/'far', 'wren/loop':'..', 'wren/again.jpg':'0.jpg', 'owl':tmp_path/'far', 'kea/gone.jpg':'nowhere', 'kea/self':'.'}.items(): (tmp_path/'d'/link).symlink_to(to)
    data,_ = quiet(tmp_path/'d')
    got = {(os.path.realpath(data.path(i)), data.items.label[i]) for i in range(len(data))}
    assert got=={(str(tmp_path/'far'/'1.jpg'),c) for c in ('wren','owl')} | {(str(tmp_path/'far'/'deep'/'2.jpg'),c) for c in ('wren','owl')} | {(str(tmp_path/'d'/'wren'/'0.jpg'),'wren'), (str(tmp_path/'d'/'kea'/'5.jpg'),'kea')}
    assert len(data)==len(got), 'a file of a class is one row, by however many links'
    assert (data.check(progress=False).problem=='same file with two labels').sum()==4

@pytest.mark.parametrize('what', ['folder','files'])
def test_links_are_in_one_split(tmp_path, what):
    put(tmp_path, *[f'{c}/{i}.jpg' for c in 'ab' for i in range(10)])
    if what=='folder': (tmp_path/'c').symlink_to('a')
    else:
        (tmp_path/'c').mkdir()
        for i in range(10): (tmp_path/'c'/f'z{i}.jpg').symlink_to(f'../a/{i}.jpg')
    data = read_folder(tmp_path, valid=.3)
    files = [os.path.realpath(data.path(i)) for i in range(len(data))]
    assert len(data)==30 and data.vocab==['a','b','c'] and data.items.split.groupby(files).nunique().max()==1 and (data.items.split=='valid').sum()>=6

def test_families(tmp_path):
    names = 'Finches/House/1.jpg','Finches/Gold/2.jpg','Sparrows/House/3.jpg','Sparrows/Tree/sub/4.jpg','Sparrows/Song/5.jpg'
    data,words = quiet(put(tmp_path, *names))
    assert data.levels==['family','label'] and 'family → label' in words
    assert data.vocab==['Gold','House (Finches)','House (Sparrows)','Song','Tree'] and data.at_level('family').vocab==['Finches','Sparrows']
    assert not data.check(progress=False).problem.isin(['label of two levels','left out']).any()
    top,_ = quiet(tmp_path, levels=['label'])
    assert top.levels==['label'] and rows(top)=={o: ('train', o.split('/')[0]) for o in names}
    same,words = quiet(put(tmp_path.parent/'sessions', 'wren/2019/1.jpg', 'wren/2020/2.jpg', 'kea/2019/3.jpg', 'kea/2020/4.jpg'))
    assert same.vocab==['kea','wren'] and same.levels==['label'] and 'upper folder' in words
    three,_ = quiet(put(tmp_path.parent/'orders', *[f'o{a}/f{a}{b}/s{a}{b}{c}/{a}{b}{c}.jpg' for a,b,c in itertools.product('12', repeat=3)]))
    assert three.levels==['order','family','label'] and len(three.vocab)==8 and len(three.at_level('order').vocab)==2

@pytest.mark.parametrize('folders,levels', [
    (dict(zip(['Fruit/Apple/Gala','Fruit/Apple/Fuji','Veg/Leek','Veg/Onion'], [('Fruit','Apple','Gala'),('Fruit','Apple','Fuji'),('Veg','Veg','Leek'),('Veg','Veg','Onion')])), 3),
    (dict(zip(['Apple/Gala','Apple/Fuji','Leek'], [('Apple','Gala'),('Apple','Fuji'),('Leek','Leek')])), 2),
    (dict(zip(['K/O/F/a','K/O/F/b','K/P/G/c','J/Q/H/d'], [('O','F','a'),('O','F','b'),('P','G','c'),('Q','H','d')])), 3), # four deep
    (dict(zip(['Finches/House/2019','Finches/House/2020','Finches/Gold/2019','Finches/Gold/2020','Wren/Wren/2019','Wren/Wren/2020'], [('Finches','House')]*2+[('Finches','Gold')]*2+[('Wren','Wren')]*2)), 2)])
@pytest.mark.parametrize('split', ['','train/'])
def test_folders_of_unequal_depth(tmp_path, folders, levels, split):
    data,words = quiet(put(tmp_path, *[f'{split}{o}/{i}.jpg' for o in folders for i in range(2)]))
    assert data.levels==['order','family','label'][-levels:] and ' → '.join(data.levels) in words
    got = {os.path.dirname(o).removeprefix(split): tuple(v) for o,*v in data.items[['path',*data.levels]].itertuples(index=False)}
    assert got==folders and ('stands for what is missing' in words)==(len({o.count('/') for o in folders})>1)
    told,_ = quiet(tmp_path, levels=['family','label'])
    assert {os.path.dirname(o).removeprefix(split): tuple(v) for o,*v in told.items[['path','family','label']].itertuples(index=False)}=={k: v[-2:] for k,v in folders.items()}

def test_the_same_folders_under_two_orders(tmp_path):
    data,_ = quiet(put(tmp_path, 'O1/F/L/1.jpg', 'O2/F/L/2.jpg', 'O1/G/L/3.jpg', 'O1/G/M/4.jpg', 'O2/F/N/5.jpg'))
    assert data.items.label.tolist()==['L (O1/F)','L (G)','M','L (O2/F)','N'] and data.items.family.tolist()==['F (O1)','G','G','F (O2)','F (O2)']
    assert not data.check(progress=False).problem.eq('label of two levels').any()

def test_groceries():
    root = Path(os.environ.get('FGVC_SHARED', '../shared'))/'data'/'grocery81'
    if not root.is_dir(): pytest.skip(f'{root} is not here')
    data,words = quiet(root)
    assert len(data.vocab)==81 and (data.items.label==[o.split('/')[-2] for o in data.items.path]).all() and data.at_level('order').vocab==['Fruit','Packages','Vegetables']
    assert 'Vegetables/Brown-Cap-Mushroom is Vegetables/Mushroom/Brown-Cap-Mushroom' in words # in the test alone
    assert quiet(root, levels=['family','label'])[0].vocab==data.vocab

def test_folders_that_cannot_be_read(tmp_path, monkeypatch):
    put(tmp_path, 'wren/1.jpg', 'secret/2.jpg')
    scan = os.scandir
    def refuse(o):
        if 'secret' in str(o): raise PermissionError(13, 'Permission denied', str(o))
        return scan(o)
    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(FineGrainedError, match='secret cannot be read .Permission denied'): read_folder(tmp_path)

def test_names_that_are_no_text(tmp_path):
    put(tmp_path, 'wren/1.jpg', 'wren/2.jpg')
    os.makedirs(os.fsencode(tmp_path)+b'/M\xe9sange')
    os.rename(tmp_path/'wren'/'2.jpg', os.fsencode(tmp_path)+b'/M\xe9sange/\xe9.jpg')
    data = read_folder(tmp_path, valid=0)
    assert data.vocab==['M\\xe9sange','wren'] and data.picture(0).size==(8,8)
    said = data.check(progress=False)
    assert said[said.problem=='name is not UTF-8'].row.tolist()==[0]
    (repr(data)+said.to_string()+said.to_html()+' '.join(data.vocab)).encode() # can be written
    data.items.to_csv(tmp_path/'t.csv', index=False, errors='surrogateescape')
    again = fine_grained_data(tmp_path/'t.csv', valid=0)
    assert again.items.path.tolist()==data.items.path.tolist() and again.vocab==data.vocab

# CSVs

@pytest.fixture(scope='module')
def photos(tmp_path_factory): return put(tmp_path_factory.mktemp('photos'), *[f'{i}.jpg' for i in range(8)])

def csv_of(photos, text, encoding='utf-8', **kwargs):
    (photos/'t.csv').write_bytes(text.encode(encoding))
    return fine_grained_data(photos/'t.csv', **{'valid':0, **kwargs})

@pytest.mark.parametrize('yes,no', [('True','False'), ('true','FALSE'), ('1','0'), ('1.0','0.0'), ('yes','no')])
def test_is_valid(photos, yes, no):
    data = csv_of(photos, f'path,label,is_valid\n0.jpg,a,{yes}\n1.jpg,a,{no}\n2.jpg,b,{no}\n', valid=.5)
    assert data.items.split.tolist()==['valid','train','train'] and 'is_valid' not in data.items
    frame = pd.DataFrame(dict(path=['0.jpg','1.jpg'], label='a', is_valid=[True,False]))
    for dtype in (bool, object, int, float, 'boolean', 'category'): assert FineGrainedData(frame.astype(dict(is_valid=dtype))).items.split.tolist()==['valid','train']

@pytest.mark.parametrize('said,split', list(split_names.items())+[('Val','valid'),(' TEST ','test')])
def test_split_words(photos, said, split): assert csv_of(photos, f'path,label,split\n0.jpg,a,{said}\n1.jpg,a,train\n').items.split[0]==split

plain = 'path,label,ring\n0.jpg,a,007\n1.jpg,b,12\n'
@pytest.mark.parametrize('text,encoding', [(plain,'utf-8-sig'), (plain,'utf-16'), (plain.replace(',', ';'),'utf-8'), (plain.replace(',', '\t'),'utf-8'), (plain.replace('\n', '\r\n'),'utf-8'), (plain[:-1],'utf-8'),
    (plain.replace(',', ' , '),'utf-8'), (plain.replace('0.jpg', '.\\0.jpg'),'utf-8'), (''.join(f'{i},{o}\n' for i,o in zip(('',0,1), plain.splitlines())),'utf-8'), (plain.replace('\n', '\n\n'),'utf-8'), ('"path","label","ring"\n"0.jpg","a","007"\n"1.jpg","b","12"\n','utf-8')])
def test_written_otherwise(photos, text, encoding):
    data = csv_of(photos, text, encoding)
    assert data.vocab==['a','b'] and data.items.ring.tolist()==['007','12'] and all(data.path(i).is_file() for i in (0,1)) and 'Unnamed: 0' not in data.items

def test_text_stays_text(photos):
    data = csv_of(photos, 'path,label,family,year,ring,mass\n0.jpg,NA,007,2019,01,1.5\n1.jpg,None,7,2020,1,NA\n2.jpg,nan,07,2021,1.0,2\n3.jpg,null,7,2022,x,3\n4.jpg,1.0,7,2023,,4\n', levels=['family','label'])
    assert data.items.label.tolist()==['NA','None','nan','null','1.0'] and data.items.family.tolist()==['007','7','07','7','7']
    assert (data.items.year.tolist()==[2019,2020,2021,2022,2023] and data.items.ring.tolist()[:4]==['01','1','1.0','x'] and np.isnan(data.items.mass[1])
        and data.items.mass.sum()==10.5)

bad_csv = {'is_valid nan': ('path,label,is_valid\n0.jpg,a,1\n1.jpg,b,\n', 'Row 1 says is_valid=nan'), 'is_valid word': ('path,label,is_valid\n0.jpg,a,maybe\n', 'is_valid=maybe'),
    'contradiction': ('path,label,split,is_valid\n0.jpg,a,train,True\n', 'Row 0: the columns split and is_valid contradict'),
    'one too many, first': ('path,label\n0.jpg,a,9\n1.jpg,b\n', 'line 2: expected 2 values'), 'one too many, later': ('path,label\n0.jpg,a\n1.jpg,b,9\n', 'line 3: expected 2'), 'all': ('path,label\n0.jpg,a,9\n1.jpg,b,9\n', 'line 2, 3: expected 2'),
    'too few': ('path,label,ring\n0.jpg,a,1\n1.jpg,b\n', 'line 3: expected 3'), 'no label': ('path,label\n0.jpg,a\n1.jpg\n', 'line 3: expected 2'), 'quote': ('path,label\n0.jpg,"a\n1.jpg,b\n', 'never closed'),
    'twice': ('path,label,label\n0.jpg,a,b\n', 'column label is there twice'), 'no path': ('fname,labels\n0.jpg,a\n', "rename yours with `df.rename\\(columns={'fname': 'path'}"), 'no label column': ('path,target\n0.jpg,a\n', "{'target': 'label'}"),
    'empty': ('', 't.csv'), 'head only': ('path,label\n', 'table is empty'), 'empty path': ('path,label\n,a\n', "'path' is empty in row 0"), 'root': ('path,label\nx/0.jpg,a\n', 'None of 1 files .* x/0.jpg|x/0.jpg: give `root=`'), 'ending': ('path,label\n0,a\n', "lack their ending '.jpg'"),
    'split': ('path,label,split\n0.jpg,a,holdout\n', "split='holdout'")}
@pytest.mark.parametrize('case', bad_csv)
def test_bad_csv(photos, case):
    text,msg = bad_csv[case]
    with pytest.raises(FineGrainedError, match=msg) as e: csv_of(photos, text)
    assert 't.csv' in str(e.value)

@pytest.mark.parametrize('text', ['0.jpg,a\n1.jpg,b\n', '0.jpg,0,0\n1.jpg,1,0\n'])
def test_no_header_line(photos, text):
    with pytest.raises(FineGrainedError, match='t.csv has no header line'): csv_of(photos, text)

def test_other_files(photos):
    with pytest.raises(FineGrainedError, match='is not written in UTF-8 .M.xf6we'): csv_of(photos, 'path,label\n0.jpg,Möwe\n', 'latin-1')
    for code in ('utf-16-le','utf-16-be','utf-32','utf-32-le'):
        with pytest.raises(FineGrainedError, match='t.csv holds bytes of 0, as text in UTF-16'): csv_of(photos, 'path,label\n0.jpg,Möwe\n1.jpg,a\n', code)
    for fn,msg in {'x.zip':'is an archive: unpack it', 'x.tar.gz':'is an archive', 'x.xlsx':'is no CSV', 'x.jpg':'is a picture', 'x.json':'is no CSV'}.items():
        (photos/fn).write_bytes(b'PK\x03\x04\xff\xfe\x00')
        with pytest.raises(FineGrainedError, match=msg): fine_grained_data(photos/fn)
        (photos/fn).unlink()
    assert len(csv_of(photos, f'path,label\n{photos}/0.jpg,a\n../{photos.name}/1.jpg,b\n'))==2

# Boxes

@pytest.mark.parametrize('value', ['1,5', '10px', 'left', np.inf, -np.inf, [1], True, b'5', 1j])
@pytest.mark.parametrize('k', range(4))
def test_box_values(value, k):
    box = {c: pd.Series([v,v], dtype=object) for c,v in zip(('x0','y0','x1','y1'), (0,0,9,9))}
    box[list(box)[k]][1] = value
    with pytest.raises(FineGrainedError, match=r'The box of row 1 \(b.jpg\) has ' + list(box)[k]): FineGrainedData(pd.DataFrame(dict(path=['a.jpg','b.jpg'], label='x', **box)), valid=0)

@pytest.mark.parametrize('none', [None, np.nan, '', 'NA', 'nan', pd.NA])
def test_no_box(none):
    def of(*box): return FineGrainedData(pd.DataFrame([('a.jpg','x',0,0,9,9), ('b.jpg','x',*box)], columns=['path','label','x0','y0','x1','y1']).astype(object), valid=0)
    assert of(none, none, none, none).items[['x0','y0','x1','y1']].isna().sum(axis=1).tolist()==[0,4]
    for k in range(4):
        with pytest.raises(FineGrainedError, match='row 1 .b.jpg. lacks a corner'): of(*[none if i==k else 5*(1+i//2) for i in range(4)])

def test_boxes_that_are_shares():
    def of(*x1): return FineGrainedData(pd.DataFrame(dict(path=['a.jpg','b.jpg'], label='x', x0=.1, y0=0., x1=x1, y1=.9)), valid=0)
    with pytest.raises(FineGrainedError, match='All 2 boxes lie between 0 and 1'): of(.5, 1.)
    with pytest.raises(FineGrainedError, match='row 0 .a.jpg. lies between 0 and 1, where others are in pixels'): of(.5, 3.)
    with pytest.raises(FineGrainedError, match='row 1 .b.jpg. lies between 0 and 1'): of(640., 1.)
    assert of(2., 3.).items.x1.tolist()==[2.,3.]
    some = pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(100)], label='x', x0=.1, y0=.1, x1=[640.,*[.5]*99], y1=.9))
    with pytest.raises(FineGrainedError, match='row 1, 2, 3'): FineGrainedData(some, valid=0)

# Labels

labels = {'ints': ([7,12,7], ['12','7']), 'floats': ([7.,12.,7.], ['12','7']), 'halves': ([.5,1.5,.5], ['0.5','1.5']), 'bools': ([True,False,True], ['False','True']), 'bytes': ([b'a',b'b',b'a'], ['a','b']),
    'intervals': (pd.cut([1,5,1], [0,3,9]), ['(0, 3]','(3, 9]']), 'number categories': (pd.Categorical([3,1,3], [3,1,2]), ['3','1','2']), 'years': (pd.to_datetime(['2019','2020','2019']), ['2019-01-01 00:00:00','2020-01-01 00:00:00']),
    'nullable': (pd.array([7,12,7], 'Int64'), ['12','7']), 'strings': (pd.array(['b','a','b'], 'string'), ['a','b'])}
@pytest.mark.parametrize('case', labels)
def test_labels_are_text(photos, case):
    given,vocab = labels[case]
    data = FineGrainedData(pd.DataFrame(dict(path=[f'{i}.jpg' for i in range(3)], label=given, split=['train','train','valid'])), photos)
    assert data.vocab==vocab and all(type(o) is str for o in data.items.label)
    dls = data.dls(size=8, bs=2, num_workers=0, cache=False)
    assert list(dls.vocab)==vocab and sorted(dls.vocab[i] for i in dls.train_ds[0][-1:])

@pytest.mark.parametrize('bad', [[['a'],['b']], [{'a'},{'b'}], [{},{}], [1,'1'], [np.array([1]),'x'], [('a',),'b']])
def test_labels_that_are_none(bad):
    for levels in (None, ['family','label']):
        df = pd.DataFrame(dict(path=['a.jpg','b.jpg'], label='x', family='y'))
        df['label' if levels is None else 'family'] = pd.Series(bad, dtype=object)
        with pytest.raises(FineGrainedError, match="Column '(label|family)' holds"): FineGrainedData(df, levels=levels, valid=0)

@pytest.mark.parametrize('col', ['label','path'])
@pytest.mark.parametrize('kind', [object, 'category', 'str'])
def test_missing_names(col, kind):
    df = pd.DataFrame(dict(path=['a.jpg','b.jpg'], label=['x','y'], split='train'))
    df[col] = pd.Series(['x',None], dtype=kind)
    with pytest.raises(FineGrainedError, match=f"Column '{col}' is empty in row 1"): FineGrainedData(df, valid=0)

# Parts

good = pd.DataFrame(dict(item=[0,0,1], part=['bill','tail','bill'], x=[1.,2,3], y=[1.,2,3], visible=[1,0,1]))
def with_parts(parts): return FineGrainedData(pd.DataFrame(dict(path=['0.jpg','1.jpg'], label='x')), parts=parts, valid=0)

@pytest.mark.parametrize('col,value', [('item',-1), ('item',2), ('item',.5), ('item','x'), ('item',np.nan), ('item',1e300), ('x',np.nan), ('x',np.inf), ('y','10px'), ('y',None), ('visible',np.nan), ('visible',-1), ('visible','no'), ('part',None), ('part',['a'])])
def test_bad_parts(col, value):
    bad = good.astype(object)
    bad.at[2,col] = value
    with pytest.raises(FineGrainedError, match='parts, row 2|Column .part. holds a list'): with_parts(bad)

def test_parts(photos):
    with pytest.raises(FineGrainedError, match='parts, row 1: that part'): with_parts(good.assign(part='bill'))
    for o in good:
        with pytest.raises(FineGrainedError, match=f'parts has no column {o}'): with_parts(good.drop(columns=o))
    with pytest.raises(FineGrainedError, match='parts is a list'): with_parts([1])
    for same in (good, good.assign(item=good.item.astype(float), visible=good.visible.astype(bool)), good.astype(str), good.astype(object)):
        got = with_parts(same).parts
        assert got.item.tolist()==[0,0,1] and got.x.tolist()==[1,2,3] and (got.visible>0).tolist()==[True,False,True]
    assert with_parts(good.assign(x=[1,np.nan,3])).parts.x.isna().sum()==1 # what is not visible may be nowhere
    far = FineGrainedData(pd.DataFrame(dict(path=['0.jpg','1.jpg'], label='x')), photos, parts=good.assign(x=[1.,99,30]), valid=0).check(progress=False)
    assert far[far.problem=='part outside the image'][['row','detail']].values.tolist()==[[1,'bill at 30,3 in a picture of 8×8']]

def test_commas_in_a_list(tmp_path):
    "One that the published layout has with blanks"
    from fgvc_fast.datasets.formats import read_words
    (tmp_path/'images.txt').write_text('1, a/0.jpg\n2, a/1.jpg\n')
    with pytest.raises(FineGrainedError, match="images.txt, line 1, 2: id '1,' is no whole number: blanks stand between values, not commas"): read_words(tmp_path/'images.txt', ['id','file'], rest=True, whole=['id'])
