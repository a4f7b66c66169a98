"The docs site builds, knows every public name with its arguments, and no link of it leads nowhere"
import inspect, json, os, re, subprocess, sys
from html.parser import HTMLParser
from importlib import import_module
from pathlib import Path
from urllib.parse import unquote, urldefrag
import pytest
from fastcore.docments import docments
from fgvc_fast._modidx import d as index

root = Path(__file__).parent.parent

class Page(HTMLParser):
    "Ids, links and text of an HTML page; text of code apart"
    def __init__(self, fn):
        super().__init__()
        self.ids,self.links,self.text,self.prose,self.inside = set(),[],[],[],[]
        self.feed(fn.read_text(encoding='utf-8'))
        self.all = ' '.join(' '.join(self.text).split())

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if 'id' in a: self.ids.add(a['id'])
        if link := a.get('href') or a.get('src'): self.links.append((tag, link))
        if tag in ('code','pre','script','style','math','svg'): self.inside.append(tag)

    def handle_endtag(self, tag):
        if self.inside and self.inside[-1]==tag: self.inside.pop()

    def handle_data(self, s):
        if self.inside[-1:]  in (['script'],['style']): return
        self.text.append(s)
        if not self.inside: self.prose.append(s)

@pytest.fixture(scope='module')
def site(tmp_path_factory):
    "{path: Page} of the site, built apart from the tree"
    to = tmp_path_factory.mktemp('docs')/'site'
    res = subprocess.run([sys.executable, root/'nbs'/'_docs.py', to], capture_output=True, text=True, cwd=root, env=os.environ|dict(MPLBACKEND='agg'))
    assert res.returncode==0, res.stderr[-3000:]
    return to,{o.relative_to(to).as_posix(): Page(o) for o in to.rglob('*.html')}

def symbols():
    "(module, name, page) of every public name that a notebook exports"
    for mod,syms in index['syms'].items():
        for full,(doc,_) in syms.items():
            name = full.removeprefix(mod+'.')
            if not any(o.startswith('_') for o in name.split('.')): yield mod,name,doc.split('#')[0]

def squashed(s): return re.sub(r'[`\s]', '', s)

def test_every_name_with_its_arguments(site):
    _,pages = site
    found = list(symbols())
    assert len(found)>150
    for mod,name,doc in found:
        page = pages[doc]
        assert name in page.ids, f'{name} has no anchor on {doc}'
        o = import_module(mod)
        for p in name.split('.'): o = inspect.getattr_static(o, p) if inspect.isclass(o) else getattr(o, p, None)
        if isinstance(o, property) or not callable(getattr(o, '__func__', o)): continue
        text = squashed(page.all)
        for arg,v in docments(getattr(o, '__func__', o), full=True).items():
            if v['docment']: assert squashed(v['docment']) in text, f'{name}: what `{arg}` means is not on {doc}'

def test_links_lead_somewhere(site):
    to,pages = site
    n = 0
    for path,page in pages.items():
        for tag,link in page.links:
            target,anchor = urldefrag(link)
            if re.match(r'[a-z]+:', link):
                assert tag=='a' or link.startswith('data:'), f'{path} loads {link} from elsewhere'
                continue
            if path=='404.html': continue # its links count from the root of a server
            fn = (to/path).parent/unquote(target.split('?')[0]) if target else to/path
            if fn.is_dir(): fn /= 'index.html'
            assert fn.is_file(), f'{path} links to {link}, which is not there'
            if anchor and fn.suffix=='.html':
                assert unquote(anchor) in pages[fn.resolve().relative_to(to.resolve()).as_posix()].ids, f'{path} links to {link}: no such place there'
            n += 1
    assert n>1000

def test_pages_are_whole(site):
    _,pages = site
    for path,page in pages.items():
        assert not re.search(r'(?m)^\s*#\|', ''.join(page.text)), f'{path} shows a directive'
        assert 'Traceback (most recent' not in page.all, f'{path} shows a traceback'
        assert '$' not in ' '.join(page.prose), f'{path} has a formula that was not drawn, or a `$` in prose'

def test_search_knows(site):
    to,_ = site
    js = (to/'search'/'search_index.js').read_text(encoding='utf-8')
    docs = json.loads(js.removeprefix('var __index = ').rstrip(';\n'))['docs']
    for name in ('fine_grained_learner','Learner.fit_phases','cam','load_bundle','FineGrainedInterpretation'):
        assert any(name in re.sub(r'<[^>]+>', '', o['title']) for o in docs), f'search does not find {name}'
    assert all(o['title'] or o['text'] for o in docs)

def test_a_broken_link_stops_the_build(tmp_path):
    "No half-built site stays behind, and a folder of something else is left alone"
    import shutil
    copy = tmp_path/'repo'
    shutil.copytree(root/'nbs', copy/'nbs')
    for o in ('pyproject.toml','settings.ini','fgvc_fast'): (shutil.copytree if (root/o).is_dir() else shutil.copy)(root/o, copy/o)
    fn = copy/'nbs'/'index.ipynb'
    nb = json.loads(fn.read_text(encoding='utf-8'))
    nb['cells'].insert(1, dict(cell_type='markdown', id='broken00', metadata={}, source=['[nowhere](api/99_nowhere.ipynb)']))
    fn.write_text(json.dumps(nb))
    res = subprocess.run([sys.executable, copy/'nbs'/'_docs.py', tmp_path/'site'], capture_output=True, text=True, cwd=copy)
    assert res.returncode and 'nowhere' in res.stderr and not (tmp_path/'site').exists()
    (tmp_path/'mine').mkdir()
    (tmp_path/'mine'/'thesis.txt').write_text('years of work')
    res = subprocess.run([sys.executable, root/'nbs'/'_docs.py', tmp_path/'mine'], capture_output=True, text=True, cwd=root)
    assert res.returncode and 'another folder' in res.stderr and (tmp_path/'mine'/'thesis.txt').exists()
