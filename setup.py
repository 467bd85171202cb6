"""Packaging of twins_dense. `make` installs it with the exact versions in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
README = ROOT / "README.md"

# `import twins_dense`, the backbones and their weights need only these.
CORE = [
    "torch>=2.8",
    "numpy>=1.26",
    "pillow>=10.3",
    "safetensors>=0.4.3",
    "click>=8.1",
    "tqdm>=4.66",
    "filelock>=3.13",
]
REPORT = ["hotcoco>=1.3", "jinja2>=3.1", "matplotlib>=3.8", "opencv-python>=4.9", "pycocotools>=2.0.8"]
IMAGENET = ["torchvision>=0.23"]
DETECTION = [
    *IMAGENET,
    *REPORT,
    "mmengine>=0.10.7,<0.11",
]
SEGMENTATION = [
    *DETECTION,
    "mmcv-lite>=2.1,<2.2",
    "mmsegmentation>=1.2.2,<1.3",
    # mmsegmentation imports these two without requiring them.
    "ftfy>=6.1",
    "regex>=2023.12.25",
]
FEATURES = [
    "zarr>=3.1.3; python_version >= '3.11'",  # zarr 3 needs Python 3.11
    "pyarrow>=17",
    "scikit-learn>=1.5",
    "usearch>=2.17",
]
RAY = [*FEATURES, "ray[data]>=2.40"]
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20", "openvino>=2025.1"]
INT8 = [*EXPORT, "nncf>=2.16"]
HUB = ["huggingface-hub>=0.23"]
ALL = [*SEGMENTATION, *FEATURES, *EXPORT, *HUB]
TEST = ["pytest>=8.2", "pytest-xdist>=3.6", "hypothesis>=6.100", "timm>=1.0.15", "selenium>=4.30", *ALL, *INT8, *RAY]
DEV = ["ruff>=0.12", "mypy>=1.13", *TEST]

# The configs are at the top of the repository, but are installed inside the package.
CONFIG_FOLDERS = [path for path in (ROOT / "configs").rglob("*") if path.is_dir() and path.name != "__pycache__"]
CONFIG_PACKAGES = [
    "twins_dense.configs",
    *(f"twins_dense.configs.{'.'.join(path.relative_to(ROOT / 'configs').parts)}" for path in CONFIG_FOLDERS),
]

setup(
    name="twins-dense",
    version="0.1.0",
    description="Twins vision-transformer backbones for dense prediction: detection, segmentation, features",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=[*find_packages(include=["twins_dense", "twins_dense.*"]), *CONFIG_PACKAGES],
    package_dir={"twins_dense.configs": "configs"},
    package_data={
        "twins_dense": ["py.typed"],
        "twins_dense.evaluation.report": ["templates/*"],
        "twins_dense.configs.detectron2": ["*.yaml"],
    },
    include_package_data=False,
    install_requires=CORE,
    extras_require={
        "report": REPORT,
        "imagenet": IMAGENET,
        "detection": DETECTION,
        "segmentation": SEGMENTATION,
        "features": FEATURES,
        "ray": RAY,
        "export": EXPORT,
        "int8": INT8,
        "hub": HUB,
        "all": ALL,
        "test": TEST,
        "dev": DEV,
    },
    entry_points={"console_scripts": ["twins-dense = twins_dense.__main__:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
        "Typing :: Typed",
    ],
)
