"The docs site: it builds offline, every public name stands on its page with its arguments, every link and picture is there"
import ast, importlib, io, json, math, re, shutil, subprocess, sys, tokenize
from collections import Counter
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
    want = {re.sub(r'(^|/)\d+\w?_', r'\1', fn.relative_to(root/'nbs').with_suffix('.html').as_posix()) for o in ('.','guide','lessons','api') for fn in (root/'nbs'/o).glob('*.ipynb')}
    files = {f'project/{o}.html' for o in ('own_folder','contributing','changelog','license','citation')} # that the front page leads to
    assert want | files | {'api/index.html'} == set(pages)

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

def test_areas(site):
    "API pages stand under their area, in the contents and in the menu, by the number that they begin with"
    numbers = {re.sub(r'^\d+\w?_', '', o.stem)+'.html': int(o.name[:3]) for o in (root/'nbs'/'api').glob('*.ipynb')}
    html = (site/'api'/'index.html').read_text(encoding='utf-8')
    found = [(a or b) for a,b in re.findall(r'<h2 id="([\w-]+)"|<h3 id="[^"]*"><a href="([^"]+)"', html)]
    at = [i for i,o in enumerate(found) if o not in numbers]
    rooms = {found[i]: [numbers[o] for o in found[i+1:j]] for i,j in zip(at, [*at[1:], None])}
    assert [o for r in rooms.values() for o in r]==sorted(numbers.values())
    assert all(rooms.values()) and {k: r[0] for k,r in rooms.items()}=={'core-and-data':0, 'data-sets':50, 'models':100, 'losses-metrics-levels':200,
        'augmentation':300, 'training':400, 'learner':500, 'interpretation':600, 'robustness':700, 'studies-saving-logs':900}
    menu = [' '.join(o.split()) for o in re.findall(r'(?s)<span class="md-ellipsis">\s*(.*?)\s*</span>', html[html.index('md-sidebar--primary'):])]
    order = [menu.index(o) for o in ('Start', 'Guide', 'How do I …', 'Lessons', 'Your first bird', 'API', 'Core and data', 'Errors and checks', 'Data sets', 'Training', 'Project')]
    assert order==sorted(order)

def test_names_that_readers_meet_come_first(site):
    html = (site/'api'/'index.html').read_text(encoding='utf-8')
    room = next(o for o in html.split('<div class="room">')[1:] if 'href="interpret.cam.html"' in o)
    key,more = room.index('class="key"'),room.index('class="more"')
    assert key < room.index('>learn.show_cam<') < room.index('Where a model looks') < more < room.index('>contrast_class<')

stop_words = set("""a able about across after all almost also am among an and any are as at be because been but by can cannot could dear did do does either else ever every for from get got had has have
    he her hers him his how however i if in into is it its just least let like likely may me might most must my neither no nor not of off often on only or other our own rather said say says she should since so some
    than that the their them then there these they this tis to too twas us wants was we were what when where which while who whom why will with would yet you your""".split()) # of lunr

@pytest.fixture(scope='module')
def find(site):
    "What the search shows first: pages for a word, as lunr and the theme rank them (BM25 of titles and texts, beginnings of words too, pages before sections)"
    index = json.loads((site/'search'/'search_index.json').read_text(encoding='utf-8'))
    boosts = {k: v['boost'] for k,v in index['config']['fields'].items() if k!='tags'}
    split = re.compile(index['config']['separator'])
    def words(html): return Counter(o for o in split.split(re.sub(r'<[^>]+>', ' ', html).lower()) if o and o not in stop_words)
    docs = [(o['location'], o.get('boost', 1), {f: words(o[f]) for f in boosts}) for o in index['docs']]
    mean = {f: sum(d[f].total() for *_,d in docs)/len(docs) for f in boosts}
    def find(word):
        n,scores = Counter(t for *_,d in docs for f in boosts for t in d[f] if t.startswith(word)),{}
        for loc,boost,d in docs:
            hits = [(f, t, tf) for f in boosts for t,tf in d[f].items() if t.startswith(word)]
            score = sum(boosts[f]*boost * math.log(1+abs((len(docs)-n[t]+.5)/(n[t]+.5))) * 2.2*tf/(1.2*(.25+.75*d[f].total()/mean[f])+tf) for f,t,tf in hits)
            page = loc.split('#')[0]
            if hits: scores[page] = max(scores.get(page, 0), score*(2 if '#' in loc else 5))
        return sorted(scores, key=scores.get, reverse=True)
    return find

answers = dict(install='index', colab='guide/how_do_i', freeze='guide/how_do_i api/train.groups', gpu='guide/how_do_i lessons/many_gpus', webcam='guide/how_do_i') # pages that say it
also = dict(duplicates='api/data.duplicates', calibration='api/interpret.calibration', mixup='api/augment.mix', ema='api/train.ema', show_cam='api/interpret.cam')

@pytest.mark.parametrize('word,pages', (answers | also).items())
def test_what_is_found_first(find, word, pages):
    pages = {f'{o}.html' for o in pages.split()}
    assert set(find(word)[:len(pages)])==pages, find(word)[:4]

browser = next(filter(None, map(shutil.which, ('chromium','chromium-browser','google-chrome'))), None)

@pytest.mark.skipif(not browser, reason='asks the search itself, in Chromium')
@pytest.mark.parametrize('word,pages', answers.items())
def test_the_search_itself(site, word, pages):
    "As a reader does who opened the site from the disk: 3 s a word"
    cmd = [browser, '--headless=new', '--no-sandbox', '--disable-gpu', '--virtual-time-budget=15000', '--dump-dom', f'{(site/"index.html").as_uri()}?q={word}']
    html = subprocess.run(cmd, capture_output=True, text=True, timeout=120).stdout
    found = re.findall(r'href="[^"]*/site/([^"?#]+)[^"]*" class="md-search-result__link"', html)
    assert found and found[0] in {f'{o}.html' for o in pages.split()}, found[:4]

def test_links_of_the_readme():
    text = (root/'README.md').read_text(encoding='utf-8')
    links = re.findall(r'\]\(([^)\s]+)\)', text)
    heads = {re.sub(r'[^\w -]', '', o.lower()).replace(' ', '-') for o in re.findall(r'(?m)^#+ (.+)$', text)}
    assert len(links)>60
    lost = [o for o in links if (o[1:] not in heads if o[0]=='#' else not (root/o.split('#')[0]).is_file())]
    assert not lost
    rows = re.findall(r'(?m)^\| (.+?) \|', text)
    assert not [o for o in rows if '](' not in o and not o.startswith(('you ','one answer','what you know','to see','to begin','to train','more than','a script'))], 'the first term of each row leads to its page'

def test_questions():
    "Thirty questions, each with code and a page"
    src = ['\n'.join(map(''.join, [c['source']])) for c in json.loads((root/'nbs'/'guide'/'10_how_do_i.ipynb').read_text(encoding='utf-8'))['cells'] if '#| hide' not in ''.join(c['source'])]
    parts = re.split(r'(?m)^### \d+ … ', '\n'.join(src))[1:]
    assert len(parts)==30
    for o in parts: assert '→ [' in o and ('```' in o or '#| output: false' in o), o

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
