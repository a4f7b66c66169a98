"The docs site: it builds offline, every public name stands on its page with its arguments, every link and picture is there"
import ast, importlib, io, json, re, shutil, subprocess, sys, tokenize
from html.parser import HTMLParser
from pathlib import Path
import pytest
pytest.importorskip('mkdocs'), pytest.importorskip('latex2mathml')
from fgvc_fast._modidx import d

root = Path(__file__).parent.parent
syms = {mod: {k.removeprefix(f'{mod}.'): page.split('#')[0] for k,(page,_) in ks.items()} for mod,ks in d['syms'].items()}
public = [(mod, k, page) for mod,ks in syms.items() for k,page in ks.items() if not any(o.startswith('_') for o in k.split('.'))]

def build(nbs, to): return subprocess.run([sys.executable, str(nbs/'_docs.py'), str(to)], capture_output=True, text=True)

class Html(HTMLParser):
    "What tests ask of a page: ids, links, pictures; text in and out of code, without the folded sources"
    def __init__(self, fn):
        super().__init__()
        self.ids,self.refs,self.loads,self.rows,self.text,self.prose,self.stack = set(),[],[],[],[],[],[]
        self.loose = 0 # formulas outside of any sentence
        self.feed(fn.read_text(encoding='utf-8'))
        self.text = ' '.join(''.join(self.text).split())

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        if tag=='a' and 'href' in a: self.refs.append(a['href'])
        if 'src' in a or (tag=='link' and a.get('rel') in ('stylesheet','icon')): self.loads.append(a.get('src', a.get('href')))
        if tag=='math' and a.get('display')=='inline' and not {'p','li','td'} & {o for o,_ in self.stack}: self.loose += 1
        if tag=='tr': self.rows.append([])
        if tag=='td' and self.rows: self.rows[-1].append('')
        if tag not in ('area','base','br','col','hr','img','input','link','meta','path','source','circle','rect'): self.stack.append((tag, a.get('class') or ''))

    def handle_endtag(self, tag):
        while tag in [o for o,_ in self.stack] and self.stack.pop()[0]!=tag: pass

    def handle_data(self, s):
        tags = {o for o,_ in self.stack}
        if ('details','source') in self.stack or tags & {'script','style','nav','title'}: return
        self.text.append(s)
        if 'td' in tags and self.rows and self.rows[-1]: self.rows[-1][-1] += s
        if not tags & {'code','pre','math'}: self.prose.append(s)

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "The folder of a built site"
    to = tmp_path_factory.mktemp('docs')/'site'
    before = sorted(root.iterdir())
    res = build(root/'nbs', to)
    assert res.returncode==0, res.stderr
    assert 'WARNING' not in res.stderr
    assert sorted(root.iterdir())==before, 'the tree was touched'
    return to

@pytest.fixture(scope='module')
def pages(site): return {fn.relative_to(site).as_posix(): Html(fn) for fn in site.rglob('*.html') if fn.name!='404.html'}

def test_a_page_for_each_notebook(pages):
    want = {re.sub(r'(^|/)\d+\w?_', r'\1', fn.relative_to(root/'nbs').with_suffix('.html').as_posix()) for o in ('.','api','lessons') for fn in (root/'nbs'/o).glob('*.ipynb')}
    assert want | {'api/index.html'} == set(pages)

def test_formulas_stand_in_their_sentence(pages): assert not [k for k,o in pages.items() if o.loose]

def test_every_name_has_its_place(pages):
    assert len(public)>150
    missing = [k for mod,k,page in public if k not in pages[page].ids]
    assert not missing
    for mod,ks in syms.items():
        page = pages[next(iter(ks.values()))]
        assert not [o for o in importlib.import_module(mod).__all__ if o not in page.ids], mod

def said_of_arguments(mod, names):
    "Comments in the signatures of a module's public functions, and at the fields of its public dataclasses; found by line, not by docments"
    src = Path(importlib.import_module(mod).__file__).read_text(encoding='utf-8')
    comments = {t.start[0]: t.string.lstrip('# ') for t in tokenize.generate_tokens(io.StringIO(src).readline) if t.type==tokenize.COMMENT}
    def lines(o):
        if isinstance(o, ast.FunctionDef) and (not o.name.startswith('_') or o.name=='__init__'):
            last = max(a.lineno for a in [*ast.walk(o.args), o] if hasattr(a, 'lineno'))
            yield from range(o.lineno, max(last, o.returns.lineno if o.returns else 0)+1)
        if isinstance(o, ast.ClassDef) and o.name in names:
            if 'dataclass' in map(ast.unparse, o.decorator_list): yield from (m.lineno for m in o.body if isinstance(m, ast.AnnAssign))
            for m in o.body: yield from lines(m)
    return [comments[i] for o in ast.parse(src).body for i in lines(o) if i in comments and not comments[i].startswith('chkstyle') and o.body[0].lineno>i]

def test_every_argument_is_explained(pages):
    n = 0
    for mod,ks in syms.items():
        page = pages[next(iter(ks.values()))]
        for s in said_of_arguments(mod, ks):
            n += 1
            assert ' '.join(s.replace('`', '').split()) in page.text, f'{mod}: {s}'
    assert n>150

def test_rows_of_the_table(pages):
    rows = pages['api/train.phases.html'].rows
    assert ['ratio', 'float', '30', 'How much slower the shallowest of the groups that train learns'] in rows
    assert ['patience', 'int | None', 'None'] in [o[:3] for o in rows]
    rows = pages['api/learner.html'].rows
    assert ['pool', 'str | Callable', "'avg'"] in [o[:3] for o in rows]
    assert any(o[:1]+o[3:]==['lr', 'Default learning rate'] for o in rows), 'what is delegated to fastai is explained too'

def test_links_and_pictures(site, pages):
    for name,page in pages.items():
        for o in page.loads:
            assert not re.match(r'(https?:)?//', o), f'{name} loads {o} from the net'
            assert (site/name).parent.joinpath(o.split('?')[0]).is_file(), f'{name}: {o}'
        for o in page.refs:
            if re.match(r'\w+:', o): continue
            path,_,frag = o.partition('#')
            to = (site/name).parent.joinpath(path).resolve().relative_to(site.resolve()).as_posix() if path else name
            if to=='.': to = 'index.html'
            assert to in pages, f'{name}: {o}'
            assert not frag or frag in pages[to].ids, f'{name}: {o}'
    assert sum(len(p.refs) for p in pages.values())>1000

def test_names_link_across_pages(pages):
    assert 'learner.html#fine_grained_learner' in pages['api/interpret.cam.html'].refs
    assert 'api/datasets.catalog.html#fine_grained_data' in pages['index.html'].refs

def test_search(site):
    docs = {o['location']: o for o in json.loads((site/'search'/'search_index.json').read_text(encoding='utf-8'))['docs']}
    for mod,k,page in public:
        if k.count('.')==0: assert k in docs[f'{page}#{k}']['title']
    assert 'Where' in docs['api/interpret.cam.html#cam']['text']
    assert not any('def _hub' in o['text'] for o in docs.values()), 'sources are not searched'
    assert (site/'search'/'search_index.js').read_text(encoding='utf-8').startswith('var __index'), 'for pages opened from the disk'
    assert 'iframe-worker.js' in (site/'index.html').read_text(encoding='utf-8')

def test_nothing_raw_is_left(pages):
    for name,page in pages.items():
        assert 'Traceback (most recent call last)' not in page.text, name
        assert not re.search(r'(?m)#\||# chkstyle', page.text), name
        prose = ''.join(page.prose)
        raw = re.search(r'.{0,40}(`|\]\(|\*\*|\{ ?[.#:]|\$|:::|\\[a-z]{2,}).{0,40}', prose)
        assert not raw, f'{name}: {raw[0]}'

def test_one_title_a_page(site):
    for fn in site.rglob('*.html'):
        if fn.name!='404.html': assert fn.read_text(encoding='utf-8').count('<h1')==1, fn.name

@pytest.fixture
def small(tmp_path):
    "Notebooks of one page, which says whatever a test wants"
    nbs = tmp_path/'nbs'
    nbs.mkdir()
    for o in ('_docs.py','_docs.css','_docs.js','mkdocs.yml'): shutil.copy(root/'nbs'/o, nbs)
    (nbs/'images').mkdir()
    def make(md, outputs=()):
        cells = [dict(cell_type='markdown', id='a', metadata={}, source=f'# Small\n\n> A page\n\n{md}'),
            dict(cell_type='code', id='b', metadata={}, source='1+1', execution_count=None, outputs=list(outputs))]
        (nbs/'index.ipynb').write_text(json.dumps(dict(cells=cells, metadata={}, nbformat=4, nbformat_minor=5)))
        return build(nbs, tmp_path/'site')
    return make

def test_formulas(small, tmp_path):
    res = small('A root, $\\sqrt{x}$, and `$HOME`:\n\n$$y_i$$')
    assert res.returncode==0, res.stderr
    html = (tmp_path/'site'/'index.html').read_text(encoding='utf-8')
    assert '<msqrt>' in html and 'display="block"' in html and '<code>$HOME</code>' in html

def test_a_broken_page_is_refused(small, tmp_path):
    assert small('Fine').returncode==0
    error = dict(output_type='error', ename='ValueError', evalue='bad', traceback=[])
    for md,outputs,says in [('[gone](gone.md)', [], 'gone.md'), ('[gone](#gone)', [], '#gone'), ('![gone](images/gone.png)', [], 'gone.png'), ('Fine', [error], 'ValueError')]:
        res = small(md, outputs)
        assert res.returncode!=0
        assert says in res.stderr
        assert '<p>Fine</p>' in (tmp_path/'site'/'index.html').read_text(encoding='utf-8'), 'the site that was there stays'

def test_another_folder_is_not_deleted(tmp_path):
    (tmp_path/'mine.txt').write_text('mine')
    res = build(root/'nbs', tmp_path)
    assert res.returncode!=0 and 'holds something else' in res.stderr
    assert (tmp_path/'mine.txt').read_text()=='mine'
