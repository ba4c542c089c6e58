/* A CUDA runtime without a GPU, for tensors that have no memory.
 *
 * torch asks the runtime more than its tensors do: which device is current, for streams and events,
 * and before every backward whether a device is in use. Preloaded, this library answers as a node
 * with GPUs would, whose number, name, capability and memory come from the environment (build.py).
 * Streams and events are things without content, always done. What would need the device itself
 * (memory on it, kernels, graphs) is refused, so that a tensor that has escaped its fake mode is an
 * error with a name, here as on a machine that has a GPU.
 *
 * torch's wheels bring the libraries of CUDA and not always the headers, so what little is needed
 * of them is declared here, as CUDA 13 has it.
 */
#include <stddef.h>
#include <stdlib.h>
#include <string.h>

typedef int error_t;
typedef void *handle_t; /* a stream or an event */

enum { SUCCESS = 0, INVALID_DEVICE = 101, NOT_SUPPORTED = 801 };

/* Where cudaDeviceProp (CUDA 13) keeps what torch shows of a device; the rest is zero. */
enum {
    NAME = 0,                     /* char[256] */
    TOTAL_MEMORY = 288,           /* size_t */
    SHARED_MEMORY_PER_BLOCK = 296, /* size_t */
    WARP_SIZE = 308,
    MAX_THREADS_PER_BLOCK = 320,
    MAJOR = 360,
    MINOR = 364,
    MULTIPROCESSORS = 384,
    MAX_THREADS_PER_MULTIPROCESSOR = 604,
    REGISTERS_PER_MULTIPROCESSOR = 632,
    SHARED_MEMORY_PER_BLOCK_OPT_IN = 672, /* size_t */
    PROPERTIES = 1008,
};

enum { ATTRIBUTE_MAJOR = 75, ATTRIBUTE_MINOR = 76, ATTRIBUTE_MULTIPROCESSORS = 16 };

static long long number(const char *name, long long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtoll(text, NULL, 10) : otherwise;
}

static int gpus(void) { return (int)number("DSV3_REHEARSED_GPUS", 1); }
static int major(void) { return (int)number("DSV3_REHEARSED_MAJOR", 9); }
static int minor(void) { return (int)number("DSV3_REHEARSED_MINOR", 0); }
static int multiprocessors(void) { return (int)number("DSV3_REHEARSED_MULTIPROCESSORS", 132); }
static size_t memory(void) { return (size_t)number("DSV3_REHEARSED_MEMORY", 80LL << 30); }

static _Thread_local int current = 0; /* as the runtime has it: of each thread */

/* Devices */

error_t cudaGetDeviceCount(int *count) { return *count = gpus(), SUCCESS; }
error_t cudaGetDevice(int *device) { return *device = current, SUCCESS; }
error_t cudaSetDevice(int device) {
    if (device < 0 || device >= gpus()) return INVALID_DEVICE;
    current = device;
    return SUCCESS;
}
error_t cudaDeviceCanAccessPeer(int *can, int device, int peer) {
    return *can = device != peer, SUCCESS;
}
error_t cudaDeviceSynchronize(void) { return SUCCESS; }
error_t cudaMemGetInfo(size_t *free, size_t *total) {
    return *free = *total = memory(), SUCCESS;
}

error_t cudaDeviceGetAttribute(int *value, int attribute, int device) {
    if (device < 0 || device >= gpus()) return INVALID_DEVICE;
    switch (attribute) {
    case ATTRIBUTE_MAJOR: *value = major(); return SUCCESS;
    case ATTRIBUTE_MINOR: *value = minor(); return SUCCESS;
    case ATTRIBUTE_MULTIPROCESSORS: *value = multiprocessors(); return SUCCESS;
    default: *value = 0; return NOT_SUPPORTED;
    }
}

static void put_int(char *properties, int at, int value) {
    memcpy(properties + at, &value, sizeof value);
}

static void put_size(char *properties, int at, size_t value) {
    memcpy(properties + at, &value, sizeof value);
}

error_t cudaGetDeviceProperties(char *properties, int device) {
    if (device < 0 || device >= gpus()) return INVALID_DEVICE;
    const char *name = getenv("DSV3_REHEARSED_NAME");
    memset(properties, 0, PROPERTIES);
    strncpy(properties + NAME, name ? name : "GPU", 255);
    put_size(properties, TOTAL_MEMORY, memory());
    put_int(properties, MAJOR, major());
    put_int(properties, MINOR, minor());
    put_int(properties, MULTIPROCESSORS, multiprocessors());
    /* The same on every data-centre GPU from Hopper on (CUDA C++ programming guide, "Compute
     * Capabilities"). */
    put_int(properties, WARP_SIZE, 32);
    put_int(properties, MAX_THREADS_PER_BLOCK, 1024);
    put_int(properties, MAX_THREADS_PER_MULTIPROCESSOR, 2048);
    put_int(properties, REGISTERS_PER_MULTIPROCESSOR, 65536);
    put_size(properties, SHARED_MEMORY_PER_BLOCK, 48 << 10);
    put_size(properties, SHARED_MEMORY_PER_BLOCK_OPT_IN, 227 << 10);
    return SUCCESS;
}

/* torch is built with CUDA 13: both say so. */
error_t cudaDriverGetVersion(int *version) { return *version = 13000, SUCCESS; }
error_t cudaRuntimeGetVersion(int *version) { return *version = 13000, SUCCESS; }

/* Errors: none is ever kept. */

error_t cudaGetLastError(void) { return SUCCESS; }
error_t cudaPeekAtLastError(void) { return SUCCESS; }
const char *cudaGetErrorName(error_t error) {
    return error == NOT_SUPPORTED ? "cudaErrorNotSupported" : "cudaError";
}
const char *cudaGetErrorString(error_t error) {
    switch (error) {
    case SUCCESS: return "no error";
    case INVALID_DEVICE: return "there is no such device in the rehearsal";
    case NOT_SUPPORTED: return "a rehearsal has no GPU: a tensor has left its fake mode";
    default: return "an error that the rehearsal's CUDA runtime does not know";
    }
}

/* Streams: where work is put that is never done. One byte, so that each has an address. */

static error_t new_handle(handle_t *handle) { return *handle = malloc(1), SUCCESS; }

error_t cudaDeviceGetStreamPriorityRange(int *least, int *greatest) {
    return *least = 0, *greatest = -5, SUCCESS;
}
error_t cudaStreamCreate(handle_t *stream) { return new_handle(stream); }
error_t cudaStreamCreateWithFlags(handle_t *stream, unsigned flags) {
    (void)flags;
    return new_handle(stream);
}
error_t cudaStreamCreateWithPriority(handle_t *stream, unsigned flags, int priority) {
    (void)flags, (void)priority;
    return new_handle(stream);
}
error_t cudaStreamGetPriority(handle_t stream, int *priority) {
    (void)stream;
    return *priority = 0, SUCCESS;
}
error_t cudaStreamDestroy(handle_t stream) { return free(stream), SUCCESS; }
error_t cudaStreamQuery(handle_t stream) { return (void)stream, SUCCESS; }
error_t cudaStreamSynchronize(handle_t stream) { return (void)stream, SUCCESS; }
error_t cudaStreamWaitEvent(handle_t stream, handle_t event, unsigned flags) {
    return (void)stream, (void)event, (void)flags, SUCCESS;
}

/* No stream is ever being captured into a graph. */
error_t cudaStreamIsCapturing(handle_t stream, int *status) {
    return (void)stream, *status = 0, SUCCESS;
}
error_t cudaStreamGetCaptureInfo(handle_t stream, int *status, unsigned long long *id, ...) {
    (void)stream;
    if (id) *id = 0;
    return *status = 0, SUCCESS;
}
error_t cudaThreadExchangeStreamCaptureMode(int *mode) { return (void)mode, SUCCESS; }

/* Events: recorded and done at once. */

error_t cudaEventCreate(handle_t *event) { return new_handle(event); }
error_t cudaEventCreateWithFlags(handle_t *event, unsigned flags) {
    return (void)flags, new_handle(event);
}
error_t cudaEventDestroy(handle_t event) { return free(event), SUCCESS; }
error_t cudaEventRecord(handle_t event, handle_t stream) {
    return (void)event, (void)stream, SUCCESS;
}
error_t cudaEventRecordWithFlags(handle_t event, handle_t stream, unsigned flags) {
    return (void)event, (void)stream, (void)flags, SUCCESS;
}
error_t cudaEventQuery(handle_t event) { return (void)event, SUCCESS; }
error_t cudaEventSynchronize(handle_t event) { return (void)event, SUCCESS; }
error_t cudaEventElapsedTime(float *milliseconds, handle_t start, handle_t end) {
    return (void)start, (void)end, *milliseconds = 0, SUCCESS;
}

/* Page-locked memory is the host's, so it is there. */

error_t cudaHostAlloc(void **memory, size_t bytes, unsigned flags) {
    (void)flags;
    return posix_memalign(memory, 4096, bytes ? bytes : 1) ? NOT_SUPPORTED : SUCCESS;
}
error_t cudaFreeHost(void *memory) { return free(memory), SUCCESS; }
error_t cudaHostRegister(void *memory, size_t bytes, unsigned flags) {
    return (void)memory, (void)bytes, (void)flags, SUCCESS;
}
error_t cudaHostUnregister(void *memory) { return (void)memory, SUCCESS; }

/* The runtime knows no address: torch takes such memory for ordinary memory of the host. */
struct attributes {
    int type;
    int device;
    void *on_device, *on_host;
};
error_t cudaPointerGetAttributes(struct attributes *attributes, const void *memory) {
    *attributes = (struct attributes){.type = 0, .device = -1, .on_host = (void *)memory};
    return SUCCESS;
}

/* Profilers have nothing to see. */

error_t cudaProfilerStart(void) { return SUCCESS; }
error_t cudaProfilerStop(void) { return SUCCESS; }

/* What needs the device: everything else that torch's libraries call. Left to the real runtime it
 * would look for a driver, and where there is one the rehearsal would use the GPU. */
#define REFUSED(name) \
    error_t name(void) { return NOT_SUPPORTED; }
REFUSED(cudaDeviceEnablePeerAccess)
REFUSED(cudaDeviceGetDefaultMemPool)
REFUSED(cudaDeviceGetGraphMemAttribute)
REFUSED(cudaDeviceGetPCIBusId)
REFUSED(cudaDeviceSetGraphMemAttribute)
REFUSED(cudaFree)
REFUSED(cudaFreeAsync)
REFUSED(cudaFuncGetAttributes)
REFUSED(cudaFuncSetAttribute)
REFUSED(cudaGetDriverEntryPointByVersion)
REFUSED(cudaGetSymbolAddress)
REFUSED(cudaGraphAddNode)
REFUSED(cudaGraphConditionalHandleCreate)
REFUSED(cudaGraphDestroy)
REFUSED(cudaGraphExecDestroy)
REFUSED(cudaGraphGetNodes)
REFUSED(cudaGraphInstantiateWithFlags)
REFUSED(cudaGraphLaunch)
REFUSED(cudaGraphNodeGetDependencies)
REFUSED(cudaGraphRetainUserObject)
REFUSED(cudaIpcCloseMemHandle)
REFUSED(cudaIpcGetEventHandle)
REFUSED(cudaIpcGetMemHandle)
REFUSED(cudaIpcOpenEventHandle)
REFUSED(cudaIpcOpenMemHandle)
REFUSED(cudaKernelSetAttributeForDevice)
REFUSED(cudaLaunchHostFunc)
REFUSED(cudaLaunchKernel)
REFUSED(cudaLaunchKernelExC)
REFUSED(cudaLibraryGetKernel)
REFUSED(cudaLibraryLoadData)
REFUSED(cudaLibraryUnload)
REFUSED(cudaMalloc)
REFUSED(cudaMallocAsync)
REFUSED(cudaMemPoolGetAttribute)
REFUSED(cudaMemPoolSetAccess)
REFUSED(cudaMemPoolSetAttribute)
REFUSED(cudaMemPoolTrimTo)
REFUSED(cudaMemcpy)
REFUSED(cudaMemcpy2DAsync)
REFUSED(cudaMemcpyAsync)
REFUSED(cudaMemcpyPeerAsync)
REFUSED(cudaMemcpyToSymbol)
REFUSED(cudaMemset)
REFUSED(cudaMemsetAsync)
REFUSED(cudaOccupancyMaxActiveBlocksPerMultiprocessorWithFlags)
REFUSED(cudaStreamAddCallback)
REFUSED(cudaStreamBeginCapture)
REFUSED(cudaStreamBeginCaptureToGraph)
REFUSED(cudaStreamEndCapture)
REFUSED(cudaStreamUpdateCaptureDependencies)
REFUSED(cudaUserObjectCreate)
REFUSED(cudaUserObjectRelease)
