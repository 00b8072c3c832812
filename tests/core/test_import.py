"""What `import sparsecraft` may cost, and what adding a method may need."""

import json
import subprocess
import sys
from pathlib import Path

import sparsecraft
from sparsecraft.core import catalog

HEAVY = [
    "transformers",
    "numba",
    "sklearn",
    "skimage",
    "matplotlib",
    "datasets",
    "jinja2",
    "joblib",
]


def test_import_brings_nothing_heavy():
    code = f"""
import json, sys
import sparsecraft
after_import = [name for name in {HEAVY} if name in sys.modules]
sparsecraft.methods.names()
print(json.dumps([after_import, [name for name in {HEAVY} if name in sys.modules]]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    after_import, after_names = json.loads(done.stdout)
    assert after_import == [] and after_names == []


def test_a_method_is_named_only_where_it_is_written():
    """No list of methods exists: no registry file mentions the modules of the methods."""
    root = Path(sparsecraft.__file__).parent
    weights = sorted(p.stem for p in (root / "methods" / "weights").glob("*.py"))
    shared = [root / "__init__.py", root / "methods" / "__init__.py"]
    shared += [root / "methods" / "weights" / "__init__.py", *(root / "core").glob("*.py")]
    for path in shared:
        text = path.read_text()
        for stem in weights:
            assert f"weights.{stem}" not in text and f"weights import {stem}" not in text, path


def test_a_new_method_file_is_found_by_itself(tmp_path):
    """One file dropped into the package is in the catalog, the options and the selection."""
    code = f"""
import shutil, sys
from pathlib import Path
import sparsecraft.methods.weights as weights
weights.__path__.append({str(tmp_path)!r})
from sparsecraft.core import catalog
info = catalog.get("largest_first")
assert info in catalog.select(of="weights", criterion="magnitude")
print(catalog.build("largest_first", sparsity=0.75).density)
"""
    source = Path(catalog.get("magnitude").cls.__module__.replace(".", "/") + ".py")
    text = (Path(sparsecraft.__file__).parents[1] / source).read_text()
    text = text.replace('"magnitude",\n    paper', '"largest_first",\n    paper')
    text = text.replace('"global_magnitude"', '"largest_first_of_all"')
    (tmp_path / "largest_first.py").write_text(text)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "0.25", done.stderr
