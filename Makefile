# On a fresh machine, `make demo` or `make test` is all the setup you need. The first call creates .venv.

PYTHON ?= python3
PYTEST_ARGS ?=
DEMO_ARGS ?=

VENV := .venv
VPY := $(VENV)/bin/python
PIP := $(VPY) -m pip --disable-pip-version-check
SOURCES := $(wildcard twins_dense tests tools datasets configs setup.py)

# Stamp files, touched last: an interrupted installation leaves none, so the next call continues it.
RUNTIME := $(VENV)/.installed-runtime
DEV := $(VENV)/.installed-dev

.PHONY: help demo test hostile check clean

help:
	@echo 'make demo    train, evaluate and draw a small Mask R-CNN'
	@echo 'make test    run the tests (PYTEST_ARGS="-m slow" runs the slow tests, -n0 uses one process)'
	@echo 'make hostile try many hostile inputs, for half an hour'
	@echo 'make check   run ruff and mypy'
	@echo 'make clean   remove .venv, caches and build outputs; keeps data and results'
	@echo 'The first call installs into .venv, a download of about 3 GB. PYTHON=... chooses the Python (3.10 or newer).'

demo: $(RUNTIME)
	$(VENV)/bin/twins-dense demo $(DEMO_ARGS)

# One process per core, but at most four, because each takes up to 2 GB of memory.
test: $(DEV)
	$(VPY) -m pytest -n auto --maxprocesses 4 --dist worksteal $(PYTEST_ARGS)

hostile: $(DEV)
	$(VPY) -m pytest -n auto --maxprocesses 4 --dist worksteal -m hostile $(PYTEST_ARGS)

check: $(DEV)
	$(VPY) -m ruff check $(SOURCES)
	$(VPY) -m ruff format --check $(SOURCES)
	$(VPY) -m mypy twins_dense

# opencv-python is linked to libGL.so.1, which machines without a display often lack; `import cv2` then fails.
# opencv-python-headless has the same modules except for windows, and does not need that library. It cannot simply be
# our dependency, because mmengine requires opencv-python by name. Both are uninstalled first, because they share the
# folder cv2/, and a later `pip install -e` installs opencv-python over the headless one again.
define ensure_cv2
	@$(VPY) -c 'import cv2' 2>/dev/null || { \
	  echo 'OpenCV does not load here (libGL.so.1 missing?): replacing it with opencv-python-headless.'; \
	  $(PIP) uninstall -qq -y opencv-python opencv-python-headless && \
	  $(PIP) install -q --no-deps -c constraints.txt opencv-python-headless && \
	  $(VPY) -c 'import cv2'; }
endef

$(RUNTIME): setup.py constraints.txt
	@$(VPY) -m pip --version >/dev/null 2>&1 || { \
	  $(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' 2>/dev/null || { \
	    found=`$(PYTHON) -c 'import platform; print(platform.python_version())' 2>/dev/null || echo 'not found'`; \
	    echo "twins-dense needs Python 3.10 or newer; $(PYTHON) is $$found. Choose another: make PYTHON=python3.11" >&2; \
	    exit 1; }; \
	  $(PYTHON) -m venv $(VENV); }
	@echo 'Installing into $(VENV): this downloads about 3 GB once and takes a few minutes.'
	@$(PIP) install -q -c constraints.txt -e '.[all]'
	$(ensure_cv2)
	@touch $@

$(DEV): $(RUNTIME)
	@echo 'Installing the test and development tools into $(VENV).'
	@$(PIP) install -q -c constraints.txt -e '.[dev]'
	$(ensure_cv2)
	@touch $@

# Keeps user outputs (demo/, work_dirs/, data/).
clean:
	rm -rf $(VENV) build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find $(wildcard twins_dense tests tools datasets configs) -name __pycache__ -type d -prune -exec rm -rf {} +
