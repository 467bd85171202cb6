"""Packaging of twins_dense. `make` installs it with the exact versions in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

README = Path(__file__).resolve().parent / "README.md"

RUNTIME = [
    "torch>=2.8",
    "torchvision>=0.23",
    "numpy>=1.26",
    "pillow>=10.3",
    "safetensors>=0.4.3",
    "click>=8.1",
    "tqdm>=4.66",
    "filelock>=3.13",
    "mmengine>=0.10.7,<0.11",
    "mmcv-lite>=2.1,<2.2",
    "mmsegmentation>=1.2.2,<1.3",
    "ftfy>=6.1",
    "regex>=2023.12.25",
    "pycocotools>=2.0.8",
    "faster-coco-eval>=1.6.5",
    "opencv-python>=4.9",
    "matplotlib>=3.8",
]
HUB = ["huggingface-hub>=0.23"]
FEATURES = ["zarr>=3.1.3; python_version >= '3.11'", "pyarrow>=17"]  # zarr 3 needs Python 3.11
EXPORT = ["onnx>=1.17", "onnxscript>=0.5", "onnxruntime>=1.20"]
TEST = ["pytest>=8.2", "pytest-xdist>=3.6", "hypothesis>=6.100", "timm>=1.0.15", *HUB, *FEATURES, *EXPORT]
DEV = ["ruff>=0.12", "mypy>=1.13", *TEST]

setup(
    name="twins-dense",
    version="0.1.0",
    description="Twins vision-transformer backbones for dense prediction: detection, segmentation, features",
    long_description=README.read_text(encoding="utf-8") if README.is_file() else "",
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.10",
    packages=find_packages(include=["twins_dense", "twins_dense.*"]),
    include_package_data=False,
    install_requires=RUNTIME,
    extras_require={"hub": HUB, "features": FEATURES, "export": EXPORT, "test": TEST, "dev": DEV},
    entry_points={"console_scripts": ["twins-dense = twins_dense.cli:main"]},
    classifiers=[
        "Development Status :: 3 - Alpha",
        "Intended Audience :: Science/Research",
        "Programming Language :: Python :: 3",
        "Programming Language :: Python :: 3.10",
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Image Recognition",
    ],
)
