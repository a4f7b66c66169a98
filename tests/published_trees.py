"Annotations (no pictures) in the layouts of FGVC-Aircraft, Stanford Cars, NABirds and Stanford Dogs, of any size"
import json
from uuid import UUID
import numpy as np
from scipy.io import savemat

def lines(fn, rows):
    fn.parent.mkdir(parents=True, exist_ok=True)
    fn.write_text('\n'.join(' '.join(map(str, o)) if isinstance(o, (tuple,list)) else o for o in rows)+'\n', encoding='utf-8')

def cells(o): return np.array(o, object)[:,None] # n × 1, as MATLAB writes a list of words

def structs(rows, fields):
    "1 × n structs with `fields`, numbers as narrow as MATLAB keeps them"
    narrow = lambda v: v if isinstance(v, str) else np.uint8(v) if v<256 else np.uint16(v)
    return np.array([tuple(map(narrow, o)) for o in rows], dtype=[(k,'O') for k in fields])[None]

def aircraft(root, variants=4, each=6):
    "A third of `each` variant's pictures for each part; two variants to a family, two families to a manufacturer"
    data,rows = root/'data',[]
    for k in range(each):
        for v in range(variants): rows.append((f'{v*1000+k:07}', f'{v}00-{v}/B', f'Family {v//2}', f'de Maker {v//4}', ('train','val','test')[k%3]))
    for c,(level,plural) in enumerate(dict(variant='variants', family='families', manufacturer='manufacturers').items(), 1):
        lines(data/f'{plural}.txt', dict.fromkeys(sorted((o[c] for o in rows), reverse=True)))
        for p in ('train','val','test'): lines(data/f'images_{level}_{p}.txt', [(o[0],o[c]) for o in rows if o[4]==p])
        lines(data/f'images_{level}_trainval.txt', [(o[0],o[c]) for o in rows if o[4]!='test'])
    for p in ('train','val','test'): lines(data/f'images_{p}.txt', [o[0] for o in rows if o[4]==p])
    lines(data/'images_box.txt', [(o[0], 0 if i==0 else 3, 144, 998, 431) for i,o in enumerate(rows[::-1])]) # another order; one begins at 0
    return rows

def cars(root, names, each=8, labels='above'):
    "Half of `each` class for the test; `labels`: 'above' the devkit, 'devkit' or None"
    kit = root/'devkit'
    kit.mkdir(parents=True)
    fields = ['bbox_x1','bbox_y1','bbox_x2','bbox_y2','class','fname']
    rows = {s: [(39+i%300, 116, 569, 375, i%len(names)+1, f'{i+1:05}.jpg') for i in range(len(names)*each//2)] for s in ('train','test')}
    savemat(kit/'cars_meta.mat', dict(class_names=cells(names).T))
    savemat(kit/'cars_train_annos.mat', dict(annotations=structs(rows['train'], fields)))
    savemat(kit/'cars_test_annos.mat', dict(annotations=structs([o[:4]+o[5:] for o in rows['test']], fields[:4]+fields[5:])))
    if labels: savemat((root if labels=='above' else kit)/'cars_test_annos_withlabels.mat', dict(annotations=structs(rows['test'], fields)))
    return rows

def nabirds(root, species=2, each=4, parts=11):
    "Half of the species perch (and so have a family), half swim; two plumages each, ids as in the published tree: order < family < species < leaves"
    order,fam,sp,leaf = (1,2),3,range(4, 4+species),range(4+species, 4+3*species)
    names = {0: 'Birds', 1: 'Ducks, Geese, and Swans', 2: 'Perching Birds', fam: 'Wood-Warblers', **{o: f'Species {o}' for o in sp}}
    up = {1: 0, 2: 0, fam: 2, **{o: fam if i%2 else 1 for i,o in enumerate(sp)}}
    for i,o in enumerate(leaf): names[o],up[o] = f"{names[sp[i//2]]}  ({('Male','Female/juvenile')[i%2]})",sp[i//2]
    rng = np.random.default_rng(0)
    ids = [UUID(bytes=rng.bytes(16)) for _ in range(len(leaf)*each)]
    cls = [leaf[i%len(leaf)] for i in range(len(ids))]
    mixed = rng.permutation(len(ids))
    lines(root/'images.txt', [(u, f'{c:04}/{u.hex}.jpg') for u,c in zip(ids, cls)])
    for fn,value in dict(image_class_labels=lambda i: cls[i], train_test_split=lambda i: i%2, bounding_boxes=lambda i: '83 59 128 228', sizes=lambda i: '296 341',
        photographers=lambda i: 'José Ñandú').items():
        lines(root/f'{fn}.txt', [(ids[i], value(i)) for i in mixed])
    lines(root/'classes.txt', names.items())
    lines(root/'hierarchy.txt', up.items())
    lines(root/'parts'/'parts.txt', [(i, f'part {i}') for i in range(parts)])
    lines(root/'parts'/'part_locs.txt', [(u, k, 127+k, 76, 1) if k else (u, 0, -1, -1, 0) for u in ids for k in range(parts)])
    return ids,cls

def dogs(root, breeds, train=3, test=2, boxes=True):
    rows = {s: [(f'{b}/{b.split("-")[0]}_{i}', c) for c,b in enumerate(breeds, 1) for i in r] for s,r in dict(train=range(train), test=range(train, train+test)).items()}
    for s,r in {**rows, 'file': rows['train']+rows['test']}.items():
        root.mkdir(parents=True, exist_ok=True)
        savemat(root/f'{s}_list.mat', dict(file_list=cells([f'{o[0]}.jpg' for o in r]), annotation_list=cells([o[0] for o in r]), labels=np.array([o[1] for o in r], np.uint8)[:,None]))
    box = '<object><name>dog</name><bndbox><xmin>30</xmin><ymin>14</ymin><xmax>206</xmax><ymax>284</ymax></bndbox></object>'
    for f,_ in (rows['train']+rows['test'] if boxes else []): lines(root/'Annotation'/f, [f'<annotation><filename>%s</filename>{box}</annotation>'])
    return rows

def cub(root, species=('001.Common_Wren','002.Kea','103.Common_Wren'), each=4):
    "CUB-200-2011 with boxes, parts and attributes; two species that differ in their number alone"
    rows = [(i+1, c+1, f'{o}/{k}.jpg') for i,(k,(c,o)) in enumerate((k,(c,o)) for k in range(each) for c,o in enumerate(species))]
    for fn,value in dict(images=lambda i,c,f: (f,), image_class_labels=lambda i,c,f: (c,), train_test_split=lambda i,c,f: (i%2,),
        bounding_boxes=lambda i,c,f: (5.,6.,40.,30.)).items():
        lines(root/f'{fn}.txt', [(o[0],*value(*o)) for o in rows])
    lines(root/'classes.txt', list(enumerate(species, 1)))
    lines(root/'parts'/'parts.txt', [(1,'back'),(2,'left_eye')])
    lines(root/'parts'/'part_locs.txt', [(i,k,9.,8.,1) for i,*_ in rows for k in (1,2)])
    lines(root/'attributes.txt', [(1,'crest'),(2,'red')])
    lines(root/'attributes'/'image_attribute_labels.txt', [(i,k,1,4,12.5) for i,*_ in rows for k in (1,2)])
    return rows

def pets(root, breeds=('Abyssinian','beagle'), each=6):
    rows = [(f'{b}_{i}', c, 1+(c-1)%2, 1) for i in range(each) for c,b in enumerate(breeds, 1)]
    for s,r in dict(trainval=rows[::2]+rows[1::4], test=rows[3::4], list=rows).items(): lines(root/'annotations'/f'{s}.txt', ['# a header', *r])
    voc = '<annotation><object><bndbox><xmin>3</xmin><ymin>4</ymin><xmax>40</xmax><ymax>50</ymax></bndbox></object></annotation>'
    for o in rows[:4]: lines(root/'annotations'/'xmls'/f'{o[0]}.xml', [voc])
    return rows

def flowers(root, n=102):
    root.mkdir(parents=True)
    savemat(root/'imagelabels.mat', dict(labels=np.arange(3*n)[None]%n+1))
    savemat(root/'setid.mat', dict(zip(('trnid','valid','tstid'), np.arange(1, 3*n+1).reshape(3,1,n))))

def food(root, dishes=('apple_pie','waffles')):
    lines(root/'meta'/'classes.txt', dishes)
    lines(root/'meta'/'labels.txt', [o.replace('_', ' ').title() for o in dishes])
    for s,r in dict(train=range(4), test=range(4, 6)).items(): lines(root/'meta'/f'{s}.txt', [f'{o}/{i}' for o in dishes for i in r])

def cifar_100(root, n=4):
    rng = np.random.default_rng(0)
    root.mkdir(parents=True)
    for s in ('train','test'): (root/f'{s}.bin').write_bytes(np.c_[rng.integers(0, 2, (n,2)), rng.integers(0, 256, (n,3072))].astype(np.uint8).tobytes())
    lines(root/'fine_label_names.txt', ['oak_tree','crab'])
    lines(root/'coarse_label_names.txt', ['trees','sea'])

def inaturalist(root, n=6):
    ranks = dict(kingdom='Animalia', phylum='Chordata', order='Passeriformes', family='F', genus='G', supercategory='Birds', **{'class':'Aves'})
    for s in ('train','val'):
        lines(root/f'{s}.json', [json.dumps(dict(images=[dict(id=i, file_name=f'{s}/{i}.jpg', latitude=1.5, longitude=None) for i in range(n)],
            annotations=[dict(id=i, image_id=i, category_id=i%2) for i in range(n)], categories=[dict(id=i, name=f'Genus species{i}', **ranks) for i in range(2)]))])
