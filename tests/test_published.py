"FGVC-Aircraft, Stanford Cars, NABirds, Stanford Dogs: whole trees in the published layouts, and broken ones"
import numpy as np, pandas as pd, pytest
from PIL import Image
from scipy.io import savemat
import published_trees as trees
from fgvc_fast.core import FineGrainedError
from fgvc_fast.datasets.aircraft import aircraft_card, read_aircraft
from fgvc_fast.datasets.cars import _car, cars_card, read_cars
from fgvc_fast.datasets.catalog import fine_grained_data
from fgvc_fast.datasets.dogs import dogs_card, read_dogs
from fgvc_fast.datasets.nabirds import nabirds_card, read_nabirds
from fgvc_fast.learner import fine_grained_learner

box = ['x0','y0','x1','y1']
breeds = ['n02085620-Chihuahua', 'n02089078-black-and-tan_coonhound', 'n02113799-standard_poodle']
models = ['AM General Hummer SUV 2000', 'Audi S4 Sedan 2012', 'Audi S4 Sedan 2007', 'smart fortwo Convertible 2012']
sets = dict(aircraft=(read_aircraft, trees.aircraft, ()), cars=(read_cars, trees.cars, (models,)), nabirds=(read_nabirds, trees.nabirds, ()),
    dogs=(read_dogs, trees.dogs, (breeds,)))

@pytest.fixture(params=sets)
def made(request, tmp_path):
    "A reader and the root of a small tree that it reads"
    read,write,args = sets[request.param]
    write(tmp_path/request.param, *args)
    return read,tmp_path/request.param

def counts(data): return dict(classes=len(data.vocab), train=int((data.items.split!='test').sum()), test=len(data['test']))

def nested(data):
    "Whether each level is a function of the next finer one"
    it = data.items.dropna(subset='label')
    return all(it.groupby(fine, observed=True)[coarse].nunique().eq(1).all() for coarse,fine in zip(data.levels, data.levels[1:]))

def test_same_from_above(made):
    read,root = made
    pd.testing.assert_frame_equal(read(root).items, read(root.parent).items)
    assert read(str(root.parent)).root==read(root).root

def test_absent_pictures_are_named(made):
    "The reader needs none of them; `check` names every one"
    read,root = made
    data = read(root)
    wrong = data.check(progress=False)
    assert (wrong.problem=='missing file').sum()==len(data)
    assert data.path(0).is_relative_to(root) and data.path(0).suffix=='.jpg'

def test_arguments_and_card(made):
    read,root = made
    data = read(root, valid=0, card=dict(title='Mine'))
    assert not len(data['valid']) and data.card['title']=='Mine' and data.card['licence'] and data.card['citation']
    a,b = read(root, valid=.5, seed=1),read(root, valid=.5, seed=2)
    assert len(a['valid'])>0 and not a.items.split.equals(b.items.split) and (a['test'].index==b['test'].index).all()
    assert nested(data)

@pytest.mark.parametrize('asked', sets)
def test_another_data_set(asked, tmp_path):
    "The tree of one asked for as another: which file was expected, what was found, how it should look"
    for name,(_,write,args) in sets.items():
        if name==asked: continue
        write(tmp_path/name, *args)
        with pytest.raises(FineGrainedError, match='(?s)is not a tree of .*: expected .*, found .*It should look like this:') as e: sets[asked][0](tmp_path/name)
        assert str(tmp_path/name) in str(e.value)
    with pytest.raises(FineGrainedError, match='There is no folder'): sets[asked][0](tmp_path/'gone')

needed = dict(aircraft=['variants.txt','families.txt','images_variant_val.txt','images_variant_test.txt','images_family_train.txt','images_manufacturer_test.txt'], cars=['cars_meta.mat'],
    nabirds=['images.txt','image_class_labels.txt','classes.txt','train_test_split.txt'], dogs=['test_list.mat'])
@pytest.mark.parametrize('name,fn', [(k,o) for k,v in needed.items() for o in v])
def test_missing_file_is_named(name, fn, tmp_path):
    read,write,args = sets[name]
    write(tmp_path/name, *args)
    next(tmp_path.rglob(fn)).unlink()
    with pytest.raises(FineGrainedError, match=f'{fn} is missing'): read(tmp_path/name)

@pytest.mark.parametrize('name,fn,why', [('aircraft','images_variant_train.txt','line 3: expected 2 values'), ('aircraft','images_box.txt','line 3: expected 5 values'),
    ('nabirds','images.txt','line 3: expected 2 values'), ('nabirds','part_locs.txt','line 3: expected 5 values'), ('nabirds','bounding_boxes.txt','line 3: expected 5 values')])
def test_malformed_line_is_named(name, fn, why, tmp_path):
    read,write,args = sets[name]
    write(tmp_path/name, *args)
    fn = next(tmp_path.rglob(fn))
    text = fn.read_text(encoding='utf-8').splitlines()
    fn.write_text('\n'.join([*text[:2], 'nonsense', *text[3:]]), encoding='utf-8')
    with pytest.raises(FineGrainedError, match=f'{fn.name}, {why}'): read(tmp_path/name)

@pytest.mark.parametrize('name,fn', [('cars','cars_train_annos.mat'), ('cars','cars_test_annos_withlabels.mat'), ('dogs','train_list.mat')])
def test_what_a_failed_download_left(name, fn, tmp_path):
    read,write,args = sets[name]
    write(tmp_path/name, *args)
    next(tmp_path.rglob(fn)).write_text('<html>404 Not Found</html>')
    with pytest.raises(FineGrainedError, match=f'{fn} is no MATLAB file'): read(tmp_path/name)

# FGVC-Aircraft

def test_aircraft_whole(tmp_path):
    "100 variants: the published counts, trainval to train on, boxes by image and not by line"
    rows = trees.aircraft(tmp_path, 100, 100)
    data = read_aircraft(tmp_path)
    third = [sum(o[4]==p for o in rows) for p in ('train','val','test')]
    assert counts(data)==dict(classes=100, train=third[0]+third[1], test=third[2]) and aircraft_card['counts']==dict(classes=100, train=6667, test=3333)
    by_name = {f'images/{o[0]}.jpg': o for o in rows}
    for o in data.items.sample(50, random_state=0).itertuples():
        name,variant,family,maker,part = by_name[o.path]
        assert (o.label, o.family, o.manufacturer)==(variant, family, maker) and (o.split=='test')==(part=='test')
    assert data.vocab==(tmp_path/'data'/'variants.txt').read_text().splitlines()
    assert len(data['valid'])==100*7 # 66 or 67 of a variant are for training
    official = read_aircraft(tmp_path, val='valid')
    assert {o[7:-4] for o in official['valid'].path}=={o[0] for o in rows if o[4]=='val'}
    assert data.items[box].drop_duplicates().values.tolist()==[[2,143,998,431], [0,143,998,431]] # from 1 → from 0; a 0 stays

def test_aircraft_banner_reaches_no_batch(tmp_path):
    "White banners under black pictures, as JPEG, with boxes that reach into them: whatever the size, all batches are dark"
    trees.aircraft(tmp_path, 4, 6)
    data = read_aircraft(tmp_path)
    (tmp_path/'data'/'images').mkdir()
    for i in data.items.index:
        Image.fromarray(np.r_[np.zeros((280,400,3), np.uint8), np.full((20,400,3), 255, np.uint8)]).save(data.path(i), quality=95, subsampling=0)
    data.items[box] = [5., 100., 395., 299.]
    for crop in (None,'box'):
        for size in (31,64,300):
            dls = data.dls(size=size, bs=4, crop=crop, num_workers=0, seed=0)
            peak = max(float(b[0].max()) for dl in (dls.train, dls.valid, dls.test_dl(data['test'].index)) for b in dl)
            assert peak < .005, (crop, size, peak) # the banner begins with a block of the JPEG, so not even its ringing comes over
    assert data.picture(0).size==(400,280) and np.asarray(data.picture(0)).max() < 30
    assert set(data.check(progress=False).problem)=={'box outside the image', 'same file in two splits', 'same file with two labels'}

# Stanford Cars

@pytest.mark.parametrize('labels', ['above','devkit'])
def test_cars_whole(labels, tmp_path):
    names = [f'{o} {i} Sedan 2012' for i in range(98) for o in ('Land Rover','Audi')]
    rows = trees.cars(tmp_path, names, 20, labels)
    data = read_cars(tmp_path)
    assert counts(data)==dict(classes=196, train=1960, test=1960) and cars_card['counts']==dict(classes=196, train=8144, test=8041)
    assert data.vocab==names and list(data.items.make.cat.categories)==['Land Rover','Audi']
    test = data['test']
    assert test.label.astype(str).tolist()==[names[o[4]-1] for o in rows['test']]
    np.testing.assert_array_equal(test[box], [(o[0]-1, o[1]-1, o[2], o[3]) for o in rows['test']]) # no 8-bit sum runs over
    assert test.path.iloc[0]=='cars_test/00001.jpg' and data.items.path.iloc[0]=='cars_train/00001.jpg' and not data.items.path.duplicated().any()

def test_cars_names():
    for name,want in {'AM General Hummer SUV 2000': ('AM General',2000,'SUV'), 'Aston Martin V8 Vantage Coupe 2012': ('Aston Martin',2012,'Coupe'), 'Land Rover Range Rover SUV 2012': ('Land Rover',2012,'SUV'),
        'Mercedes-Benz 300-Class Convertible 1993': ('Mercedes-Benz',1993,'Convertible'), 'Ram C-V Cargo Van Minivan 2012': ('Ram',2012,'Minivan'), 'Chevrolet Silverado 2500HD Regular Cab 2012': ('Chevrolet',2012,'Pickup'),
        'Infiniti G Coupe IPL 2012': ('Infiniti',2012,'Coupe'), 'Chrysler 300 SRT-8 2010': ('Chrysler',2010,None), 'Acura Integra Type R 2001': ('Acura',2001,None), 'Ford E-Series Wagon Van 2012': ('Ford',2012,'Van'),
        'Bugatti Veyron 16.4 Coupe 2009': ('Bugatti',2009,'Coupe'), 'Audi 100 Wagon 1994': ('Audi',1994,'Wagon'), 'Nissan 240SX Coupe 1998': ('Nissan',1998,'Coupe')}.items():
        make,model,year,body = _car(name)
        assert (make, year, body)==want and name==f'{model} {year}'

def test_cars_without_test_labels(tmp_path):
    "Training and predicting go on; scoring ends in one clear error; the vocabulary, splits and levels are those of the labelled tree"
    trees.cars(tmp_path/'with', models, 16)
    trees.cars(tmp_path/'without', models, 16, None)
    known,data = read_cars(tmp_path/'with'),read_cars(tmp_path/'without')
    assert data['test'][data.levels].isna().all(axis=None) and data.vocab==known.vocab
    pd.testing.assert_frame_equal(data.items[data.items.split!='test'], known.items[known.items.split!='test'])
    for i in data.items.index:
        data.path(i).parent.mkdir(exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 255, (400,600,3), dtype=np.uint8)).save(data.path(i))
    assert data.check(progress=False).problem.tolist()==['test without labels']
    learn = fine_grained_learner(data.dls(size=32, bs=8, crop='box', num_workers=0), 'toy_resnet')
    with learn.no_bar(), learn.no_logging():
        learn.fit(1)
        assert learn.get_preds(dl=learn.dls.test_dl(data['test'].index, num_workers=0))[0].shape==(32,4)
        with pytest.raises(FineGrainedError, match="32 of 32 'test' pictures of Stanford Cars have no label.*cars_test_annos_withlabels.mat"): learn.test()
    with pytest.raises(FineGrainedError, match='have no label'): data.dls(valid='test')
    again = data.split(valid=.25).drop([0])
    assert again['test'].label.isna().all() and len(again['valid'])==8
    data.show([0, len(data)-1], cols=2)

def test_cars_one_file(tmp_path):
    rows = [(f'car_ims/{i+1:06}.jpg', 112, 7, 853, 717, i//4+1, int(i%2==0)) for i in range(16)]
    savemat(tmp_path/'cars_annos.mat', dict(annotations=trees.structs(rows, ['relative_im_path','bbox_x1','bbox_y1','bbox_x2','bbox_y2','class','test']), class_names=trees.cells(models).T))
    data = read_cars(tmp_path, valid=0)
    assert data.items.split.tolist()==['test','train']*8 and data.items.label.astype(str).tolist()==[m for m in models for _ in range(4)]
    assert data.items[box].iloc[0].tolist()==[111,6,853,717] and data.items.path.iloc[0]=='car_ims/000001.jpg'

# NABirds

def test_nabirds_whole(tmp_path):
    ids,cls = trees.nabirds(tmp_path, species=277, each=20)
    data = read_nabirds(tmp_path)
    assert counts(data)==dict(classes=554, train=5540, test=5540) and nabirds_card['counts']==dict(classes=555, train=23929, test=24633)
    assert data.levels==['order','family','species','label'] and len(data.parts)==len(ids)*11
    assert data.vocab[:2]==['Species 4 (Male)', 'Species 4 (Female/juvenile)'] # doubled blanks are gone, the order is that of the ids
    first = data.items.iloc[[0,2]]
    assert first[['order','family','species','plumage']].values.tolist()==[['Ducks, Geese, and Swans']*2+['Species 4','Male'], ['Perching Birds','Wood-Warblers','Species 5','Male']]
    assert data.items.path.iloc[0]==f'images/{cls[0]:04}/{ids[0].hex}.jpg' and (data.items.split!='test').tolist()==[bool(i%2) for i in range(len(ids))] # lines stand in another order
    assert data.items[box+['width','height','photographer']].iloc[0].tolist()==[83,59,211,287,296,341,'José Ñandú']
    p = data.parts[data.parts.item==7]
    assert p.part.tolist()==[f'part {i}' for i in range(11)] and p.visible.tolist()==[0]+[1]*10 and p.x.tolist()==[-1]+[127+i for i in range(1,11)]

def test_nabirds_tree_that_is_none(tmp_path):
    trees.nabirds(tmp_path)
    fn = tmp_path/'hierarchy.txt'
    text = fn.read_text()
    for extra,why in {'1 2': 'class 1 has two parents', 'x 1': 'hierarchy.txt, line 10: child .x. is no whole number', '0 4': 'go round in a circle'}.items():
        fn.write_text(text+extra+'\n')
        with pytest.raises(FineGrainedError, match=why): read_nabirds(tmp_path)

# Stanford Dogs

def test_dogs_whole(tmp_path):
    names = [f'n{2085620+i:08}-{"a" if i%2 else "B"}_breed-{i}' for i in range(120)]
    trees.dogs(tmp_path, names, 30, 20, boxes=False)
    data = read_dogs(tmp_path)
    assert counts(data)==dict(classes=120, train=3600, test=2400) and dogs_card['counts']==dict(classes=120, train=12000, test=8580) and not data.has_boxes
    assert data.vocab==[o.split('-', 1)[1].replace('_', ' ') for o in names] and data.items.wnid.iloc[-1]==names[-1][:9]

def test_dogs_boxes(tmp_path):
    trees.dogs(tmp_path, breeds)
    data = read_dogs(tmp_path)
    assert data.items[box+['dogs']].drop_duplicates().values.tolist()==[[30,14,206,284,1]]
    gone = next((tmp_path/'Annotation').rglob('n02085620_0'))
    gone.unlink()
    assert read_dogs(tmp_path).items[box].isna().all(axis=1).tolist()==[True]+[False]*14
    gone.write_text('<annotation><object></annotation>')
    with pytest.raises(FineGrainedError, match='n02085620_0 is no annotation of Stanford Dogs'): read_dogs(tmp_path)

def test_a_folder_tells_what_it_is(tmp_path):
    "NABirds has an images.txt as CUB does"
    trees.nabirds(tmp_path/'nabirds')
    for o in (tmp_path/'nabirds', tmp_path): assert fine_grained_data(o).levels==read_nabirds(tmp_path/'nabirds').levels
