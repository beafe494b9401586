"""A CUDA driver for machines without one: "device" memory lies on the host, and a captured graph is a list of calls."""

import ctypes

# The drivers that were made, so that a fake engine finds the stream that it runs on.
DRIVERS: list["FakeDriver"] = []


class FakeDriver:
    """`libcuda` on the host. `captures` False: every capture fails, as with kernels that synchronize."""

    def __init__(self, *, gpus: int = 1, captures: bool = True, name: str = "Fake GPU", newest: int = 12060) -> None:
        self.gpus, self.captures, self.name, self.newest = gpus, captures, name, newest
        self.memory = 8 << 30
        self.blocks: dict[int, ctypes.Array] = {}
        self.recording: list | None = None
        self.graphs: list[list] = []
        self.calls: list[str] = []
        DRIVERS.append(self)

    def __getattribute__(self, name):
        if name.startswith("cu"):
            object.__getattribute__(self, "calls").append(name)
        return object.__getattribute__(self, name)

    def cuInit(self, flags):  # noqa: N802
        return 0

    def cuDeviceGetCount(self, count):  # noqa: N802
        count._obj.value = self.gpus
        return 0

    def cuDeviceGet(self, device, index):  # noqa: N802
        device._obj.value = index
        return 0 if index < self.gpus else 101

    def cuDevicePrimaryCtxRetain(self, context, device):  # noqa: N802
        context._obj.value = 1
        return 0

    def cuDeviceGetName(self, text, size, device):  # noqa: N802
        text.value = self.name.encode()
        return 0

    def cuDeviceGetPCIBusId(self, text, size, device):  # noqa: N802
        text.value = b"0000:%02x:00.0" % (self.gpus - device.value)  # the fastest first, and last on the bus
        return 0

    def cuDeviceGetAttribute(self, value, attribute, device):  # noqa: N802
        value._obj.value = {75: 8, 76: 7}[attribute]
        return 0

    def cuDriverGetVersion(self, value):  # noqa: N802
        value._obj.value = self.newest
        return 0

    def cuStreamCreate(self, stream, flags):  # noqa: N802
        stream._obj.value = 7
        return 0

    def cuDeviceTotalMem_v2(self, total, device):  # noqa: N802
        total._obj.value = 8 << 30
        return 0

    def cuMemAlloc_v2(self, pointer, size):  # noqa: N802
        if sum(map(len, self.blocks.values())) + size.value > self.memory:
            return 2
        block = (ctypes.c_char * size.value)()
        pointer._obj.value = ctypes.addressof(block)
        self.blocks[pointer._obj.value] = block
        return 0

    def cuMemFree_v2(self, pointer):  # noqa: N802
        del self.blocks[pointer.value]
        return 0

    def cuMemcpyHtoDAsync_v2(self, target, source, size, stream):  # noqa: N802
        assert target.value in self.blocks
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuMemcpyDtoHAsync_v2(self, target, source, size, stream):  # noqa: N802
        assert source.value in self.blocks
        ctypes.memmove(target.value, source.value, size.value)
        return 0

    def cuStreamBeginCapture_v2(self, stream, mode):  # noqa: N802
        self.recording = []
        return 0

    def cuStreamEndCapture(self, stream, graph):  # noqa: N802
        recorded, self.recording = self.recording, None
        if not self.captures:
            return 901
        self.graphs.append(recorded or [])
        graph._obj.value = len(self.graphs)
        return 0

    def cuGraphInstantiateWithFlags(self, executable, graph, flags):  # noqa: N802
        executable._obj.value = graph.value
        return 0

    def cuGraphLaunch(self, executable, stream):  # noqa: N802
        for work in self.graphs[executable.value - 1]:
            work()
        return 0

    def cuGetErrorName(self, code, text):  # noqa: N802
        names = {2: "OUT_OF_MEMORY", 101: "INVALID_DEVICE", 719: "LAUNCH_FAILED", 901: "STREAM_CAPTURE_INVALIDATED"}
        text._obj.value = f"CUDA_ERROR_{names[code]}".encode()
        return 0

    def _nothing(self, *arguments):
        return 0

    cuCtxSetCurrent = cuStreamSynchronize = cuStreamDestroy_v2 = cuDevicePrimaryCtxRelease_v2 = _nothing  # noqa: N815
    cuGraphDestroy = cuGraphExecDestroy = _nothing  # noqa: N815

    def run(self, work) -> None:
        """What TensorRT puts on the stream: recorded while a capture is on, else done."""
        work() if self.recording is None else self.recording.append(work)
