"""A real program on a GPU, by the driver's own libraries: `client.py cuda|graphics idle|busy`.

It prints `ready` when it has the GPU open, then rests or works until it is killed. `cuda` computes,
`graphics` draws through EGL without a display. It exits with a sentence where that cannot be done.
"""

from __future__ import annotations

import ctypes
import signal
import sys
from collections.abc import Callable
from typing import Any

_MEMORY = 256 << 20
# EGL and OpenGL ES, by their registries.
_PLATFORM_DEVICE, _VENDOR, _ES_API = 0x313F, 0x3053, 0x30A0
_CONFIG = (0x3033, 0x0001, 0x3040, 0x0004, 0x3038)  # pbuffers, OpenGL ES 2
_CONTEXT = (0x3098, 2, 0x3038)  # version 2
_SURFACE = (0x3057, 4096, 0x3056, 4096, 0x3038)  # width, height
_COLOUR_BUFFER = 0x4000


def computes() -> Callable[[], None]:
    """Open the first GPU with CUDA; returns some work for it."""
    cuda = ctypes.CDLL("libcuda.so.1")

    def call(name: str, *args: Any) -> None:
        if code := getattr(cuda, name)(*args):
            raise OSError(f"{name} gave CUDA's error {code}")

    device, context, memory = ctypes.c_int(), ctypes.c_void_p(), ctypes.c_uint64()
    call("cuInit", 0)
    call("cuDeviceGet", ctypes.byref(device), 0)
    call("cuDevicePrimaryCtxRetain", ctypes.byref(context), device)
    call("cuCtxSetCurrent", context)
    call("cuMemAlloc_v2", ctypes.byref(memory), ctypes.c_size_t(_MEMORY))

    def work() -> None:
        for _ in range(100):
            call("cuMemsetD8_v2", memory, ctypes.c_ubyte(1), ctypes.c_size_t(_MEMORY))
        call("cuCtxSynchronize")

    return work


def draws(vendor: str) -> Callable[[], None]:
    """Open the first GPU of this vendor with EGL; returns some work for it."""
    egl = ctypes.CDLL("libEGL.so.1")
    egl.eglGetProcAddress.restype = ctypes.c_void_p

    def function(name: str, result: Any, *args: Any) -> Callable[..., Any]:
        address = egl.eglGetProcAddress(name.encode())
        if not address:
            raise OSError(f"EGL has no {name}")
        return ctypes.CFUNCTYPE(result, *args)(address)

    pointer, number = ctypes.c_void_p, ctypes.c_int
    devices, count = (ctypes.c_void_p * 16)(), ctypes.c_int()
    function("eglQueryDevicesEXT", number, number, pointer, pointer)(
        16, devices, ctypes.byref(count)
    )
    display_of = function("eglGetPlatformDisplayEXT", pointer, number, pointer, pointer)
    vendor_of = function("eglQueryString", ctypes.c_char_p, pointer, number)
    begin = function("eglInitialize", number, pointer, pointer, pointer)
    for device in devices[: count.value]:
        display = pointer(display_of(_PLATFORM_DEVICE, device, None))
        if begin(display, None, None) and vendor_of(display, _VENDOR) == vendor.encode():
            break
    else:
        raise OSError(f"EGL shows no device of {vendor} among {count.value}")
    function("eglBindAPI", number, number)(_ES_API)
    config = pointer()
    choose = function("eglChooseConfig", number, pointer, pointer, pointer, number, pointer)
    choose(display, _words(_CONFIG), ctypes.byref(config), 1, ctypes.byref(count))
    make = function("eglCreateContext", pointer, pointer, pointer, pointer, pointer)
    context = pointer(make(display, config, None, _words(_CONTEXT)))
    on = function("eglCreatePbufferSurface", pointer, pointer, pointer, pointer)
    surface = pointer(on(display, config, _words(_SURFACE)))
    current = function("eglMakeCurrent", number, pointer, pointer, pointer, pointer)
    if not current(display, surface, surface, context):
        raise OSError(f"EGL makes no context: error {egl.eglGetError():#x}")
    colour = function("glClearColor", None, *[ctypes.c_float] * 4)
    clear, finish = function("glClear", None, ctypes.c_uint), function("glFinish", None)

    def work() -> None:
        for number in range(100):
            colour(number / 100, 0, 0, 1)
            clear(_COLOUR_BUFFER)
        finish()

    return work


def _words(values: tuple[int, ...]) -> ctypes.Array[ctypes.c_int]:
    return (ctypes.c_int * len(values))(*values)


def main(api: str, mode: str, vendor: str = "NVIDIA") -> int:
    """Run until killed."""
    try:
        work = computes() if api == "cuda" else draws(vendor)
        work()
    except (OSError, AttributeError) as error:
        print(error, flush=True)
        return 1
    print("ready", flush=True)
    while mode == "busy":
        work()
    signal.pause()
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
