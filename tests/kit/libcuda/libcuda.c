/* A libcuda.so.1 whose device memory is host memory, for the real PyCUDA and the real cuda-python.
 *
 * What it does as the driver does: a context stack per thread, a primary context that is counted and whose end frees
 * what is left in it, memory that is bounded, copies that are checked against what was allocated, copies to the host
 * that arrive when their stream is synchronized, stream capture, graphs. No kernel runs.
 *
 * Every call is counted and can be made to fail. One that releases something still does its work then, as the driver
 * does when it reports an earlier, asynchronous error. `standin_*` is for the tests.
 */
#define _GNU_SOURCE
#include <cuda.h>
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#undef cuDeviceTotalMem
#undef cuCtxCreate
#define MAX_BLOCKS 4096
#define MAX_STREAMS 256
#define MAX_OPS 64
#define MAX_STACK 16
#define MAX_CALLS 65536
#define N_CONTEXTS 8 /* 0..3: the primary contexts of the devices; the others are made with cuCtxCreate */

enum kind { FREE_SLOT, MEMORY, HOST };
enum op_kind { HTOD, DTOH, HOST_FUNCTION };

struct op { enum op_kind kind; char *to; const char *from; size_t n; CUhostFn fn; void *data; };
struct work { struct op ops[MAX_OPS]; int n; };
struct block { enum kind kind; char *at; size_t n; int context; };
struct stream { int is_used, context, is_capturing; pthread_t captor; struct work pending, captured; };

static struct { int count, driver, is_integrated, can_map, major, minor; size_t memory; char name[64]; } gpu;
static struct block blocks[MAX_BLOCKS];
static struct stream streams[MAX_STREAMS];
static int retained[N_CONTEXTS];
static int n_graphs, n_reclaimed, n_torn, is_initialized;
static int n_calls, fail_at, fail_code, is_forgetful;
static char fail_name[64];
static const char *calls[MAX_CALLS];
static __thread int stack[MAX_STACK], depth;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* ---- for the tests ---- */

void standin_reset(int count, size_t memory, int is_integrated, int can_map) {
    memset(blocks, 0, sizeof blocks);
    memset(streams, 0, sizeof streams);
    memset(retained, 0, sizeof retained);
    n_graphs = n_reclaimed = n_torn = is_initialized = n_calls = fail_at = is_forgetful = 0;
    fail_name[0] = 0;
    gpu.count = count, gpu.memory = memory, gpu.is_integrated = is_integrated, gpu.can_map = can_map;
    gpu.driver = 13000, gpu.major = 8, gpu.minor = 7;
    strcpy(gpu.name, "Orin");
}

void standin_fail(int at, const char *name, int code) {
    fail_at = at, fail_code = code;
    strncpy(fail_name, name, sizeof fail_name - 1);
}

/* A recording misses the copies to the device. */
void standin_be_forgetful(void) { is_forgetful = 1; }

int standin_n_calls(void) { return n_calls; }
const char *standin_call(int i) { return i < n_calls && i < MAX_CALLS ? calls[i] : ""; }
int standin_n_reclaimed(void) { return n_reclaimed; }
int standin_n_torn(void) { return n_torn; }

/* What is held, a line each; "" when all was given back. */
void standin_live(char *text, int size) {
    int at = 0;
    text[0] = 0;
    for (int i = 0; i < MAX_BLOCKS && at < size - 80; i++)
        if (blocks[i].kind)
            at += sprintf(text + at, "%s %p=%zu\n", blocks[i].kind == MEMORY ? "memory at" : "host memory at",
                          (void *)blocks[i].at, blocks[i].n);
    for (int i = 0; i < MAX_STREAMS && at < size - 80; i++)
        if (streams[i].is_used) at += sprintf(text + at, "stream %d=1\n", i + 1);
    for (int i = 0; i < N_CONTEXTS && at < size - 80; i++)
        if (retained[i]) at += sprintf(text + at, "context %d=%d\n", i, retained[i]);
    if (n_graphs) at += sprintf(text + at, "graphs=%d\n", n_graphs);
    if (depth) sprintf(text + at, "context stack of this thread=%d\n", depth);
}

static size_t used(void) {
    size_t sum = 0;
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].kind == MEMORY) sum += blocks[i].n;
    return sum;
}

static int is_failing(const char *name) {
    pthread_mutex_lock(&lock);
    if (n_calls < MAX_CALLS) calls[n_calls] = name;
    n_calls++;
    int fails = n_calls == fail_at || (fail_name[0] && !strcmp(name, fail_name));
    pthread_mutex_unlock(&lock);
    return fails;
}

static int current(void) { return depth && retained[stack[depth - 1]] ? stack[depth - 1] : -1; }
static int is_captor(void) {
    for (int i = 0; i < MAX_STREAMS; i++)
        if (streams[i].is_capturing && pthread_equal(streams[i].captor, pthread_self())) return 1;
    return 0;
}

#define CALL(name) if (is_failing(name)) return fail_code; if (!is_initialized) return CUDA_ERROR_NOT_INITIALIZED
#define CALL_IN_CONTEXT(name) CALL(name); if (current() < 0) return CUDA_ERROR_INVALID_CONTEXT
/* A release does its work and then says what the fault is. */
#define RELEASE(name) int said = is_failing(name) ? fail_code : 0

/* Drop the copies under way that touch memory which goes: on a device they would write to it afterwards. */
static void forget(const struct block *block) {
    for (int i = 0; i < MAX_STREAMS; i++) {
        struct work *work = &streams[i].pending;
        int kept = 0;
        for (int k = 0; k < work->n; k++) {
            const struct op op = work->ops[k];
            int touches = (op.to >= block->at && op.to < block->at + block->n) ||
                          (op.from >= block->at && op.from < block->at + block->n);
            if (touches) n_torn++;
            else work->ops[kept++] = op;
        }
        work->n = kept;
    }
}

/* ---- devices ---- */

CUresult cuInit(unsigned flags) {
    if (is_failing("cuInit")) return fail_code;
    if (!gpu.count) return CUDA_ERROR_NO_DEVICE;
    is_initialized = 1;
    return CUDA_SUCCESS;
}
CUresult cuDriverGetVersion(int *version) {
    if (is_failing("cuDriverGetVersion")) return fail_code;
    *version = gpu.driver;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetCount(int *count) { CALL("cuDeviceGetCount"); *count = gpu.count; return CUDA_SUCCESS; }
CUresult cuDeviceGet(CUdevice *device, int ordinal) {
    CALL("cuDeviceGet");
    if (ordinal < 0 || ordinal >= gpu.count) return CUDA_ERROR_INVALID_DEVICE;
    *device = ordinal;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetName(char *name, int size, CUdevice device) {
    CALL("cuDeviceGetName");
    snprintf(name, size, "%s", gpu.name);
    return CUDA_SUCCESS;
}
CUresult cuDeviceComputeCapability(int *major, int *minor, CUdevice device) {
    CALL("cuDeviceComputeCapability");
    *major = gpu.major, *minor = gpu.minor;
    return CUDA_SUCCESS;
}
CUresult cuDeviceTotalMem_v2(size_t *bytes, CUdevice device) {
    CALL("cuDeviceTotalMem");
    *bytes = gpu.memory;
    return CUDA_SUCCESS;
}
CUresult cuDeviceGetAttribute(int *value, CUdevice_attribute attribute, CUdevice device) {
    CALL("cuDeviceGetAttribute");
    switch (attribute) {
    case CU_DEVICE_ATTRIBUTE_INTEGRATED: *value = gpu.is_integrated; break;
    case CU_DEVICE_ATTRIBUTE_CAN_MAP_HOST_MEMORY: *value = gpu.can_map; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR: *value = gpu.major; break;
    case CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR: *value = gpu.minor; break;
    default: *value = 0;
    }
    return CUDA_SUCCESS;
}

/* ---- contexts ---- */

static void end_context(int context) {
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].kind && blocks[i].context == context)
            forget(&blocks[i]), free(blocks[i].at), blocks[i].kind = 0, n_reclaimed++;
    for (int i = 0; i < MAX_STREAMS; i++)
        if (streams[i].is_used && streams[i].context == context) streams[i].is_used = 0, n_reclaimed++;
}
static int context_of(CUcontext context) {
    long i = (long)context - 0xC0;
    return i >= 0 && i < N_CONTEXTS && retained[i] ? (int)i : -1;
}
CUresult cuDevicePrimaryCtxRetain(CUcontext *context, CUdevice device) {
    CALL("cuDevicePrimaryCtxRetain");
    retained[device]++;
    *context = (CUcontext)(0xC0L + device);
    return CUDA_SUCCESS;
}
CUresult cuDevicePrimaryCtxRelease_v2(CUdevice device) {
    RELEASE("cuDevicePrimaryCtxRelease");
    if (!retained[device]) return CUDA_ERROR_INVALID_CONTEXT;
    if (!--retained[device]) end_context(device);
    return said;
}
CUresult cuCtxPushCurrent_v2(CUcontext context) {
    CALL("cuCtxPushCurrent");
    if (context_of(context) < 0 || depth == MAX_STACK) return CUDA_ERROR_INVALID_CONTEXT;
    stack[depth++] = context_of(context);
    return CUDA_SUCCESS;
}
CUresult cuCtxPopCurrent_v2(CUcontext *context) {
    CALL("cuCtxPopCurrent");
    if (!depth) return CUDA_ERROR_INVALID_CONTEXT;
    *context = (CUcontext)(0xC0L + stack[--depth]);
    return CUDA_SUCCESS;
}
CUresult cuCtxGetCurrent(CUcontext *context) {
    CALL("cuCtxGetCurrent");
    *context = current() < 0 ? 0 : (CUcontext)(0xC0L + current());
    return CUDA_SUCCESS;
}
CUresult cuCtxGetDevice(CUdevice *device) { CALL_IN_CONTEXT("cuCtxGetDevice"); *device = 0; return CUDA_SUCCESS; }
/* Another user of CUDA makes a context of its own. */
CUresult cuCtxCreate_v4(CUcontext *context, CUctxCreateParams *params, unsigned flags, CUdevice device) {
    CALL("cuCtxCreate");
    for (int i = 4; i < N_CONTEXTS; i++)
        if (!retained[i] && depth < MAX_STACK) {
            retained[i] = 1, stack[depth++] = i;
            *context = (CUcontext)(0xC0L + i);
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuCtxCreate_v2(CUcontext *context, unsigned flags, CUdevice device) {
    return cuCtxCreate_v4(context, 0, flags, device);
}
CUresult cuCtxDetach(CUcontext context) {
    RELEASE("cuCtxDetach");
    int i = context_of(context);
    if (i < 4) return CUDA_ERROR_INVALID_CONTEXT;
    retained[i] = 0;
    if (depth && stack[depth - 1] == i) depth--;
    end_context(i);
    return said;
}
CUresult cuCtxDestroy_v2(CUcontext context) { return cuCtxDetach(context); }

/* ---- memory ---- */

static struct block *block_at(const void *at, size_t n) {
    for (int i = 0; i < MAX_BLOCKS; i++)
        if (blocks[i].kind && blocks[i].at <= (char *)at && (char *)at + n <= blocks[i].at + blocks[i].n)
            return &blocks[i];
    return 0;
}
static void *take(enum kind kind, size_t n) {
    pthread_mutex_lock(&lock);
    void *at = 0;
    for (int i = 0; i < MAX_BLOCKS && !at; i++)
        if (!blocks[i].kind) {
            at = calloc(1, n);
            blocks[i] = (struct block){kind, at, n, current()};
        }
    pthread_mutex_unlock(&lock);
    return at;
}
static int drop(void *at, enum kind kind) {
    struct block *block = block_at(at, 1);
    if (!block || block->at != at || block->kind != kind) return CUDA_ERROR_INVALID_VALUE;
    forget(block);
    free(at);
    block->kind = FREE_SLOT;
    return CUDA_SUCCESS;
}
CUresult cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    CALL_IN_CONTEXT("cuMemGetInfo");
    *free_bytes = gpu.memory - used(), *total = gpu.memory;
    return CUDA_SUCCESS;
}
CUresult cuMemAlloc_v2(CUdeviceptr *address, size_t n) {
    CALL_IN_CONTEXT("cuMemAlloc");
    if (is_captor()) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    if (!n) return CUDA_ERROR_INVALID_VALUE;
    if (n > gpu.memory - used()) return CUDA_ERROR_OUT_OF_MEMORY;
    *address = (CUdeviceptr)take(MEMORY, n);
    return *address ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFree_v2(CUdeviceptr address) {
    RELEASE("cuMemFree");
    if (current() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    int wrong = drop((void *)address, MEMORY);
    return wrong ? wrong : said;
}
CUresult cuMemHostAlloc(void **at, size_t n, unsigned flags) {
    CALL_IN_CONTEXT("cuMemHostAlloc");
    *at = take(HOST, n);
    return *at ? CUDA_SUCCESS : CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuMemFreeHost(void *at) {
    RELEASE("cuMemFreeHost");
    if (current() < 0) return CUDA_ERROR_INVALID_CONTEXT;
    int wrong = drop(at, HOST);
    return wrong ? wrong : said;
}
CUresult cuMemHostGetDevicePointer_v2(CUdeviceptr *address, void *at, unsigned flags) {
    CALL_IN_CONTEXT("cuMemHostGetDevicePointer");
    if (!gpu.can_map || !block_at(at, 1)) return CUDA_ERROR_INVALID_VALUE;
    *address = (CUdeviceptr)at;
    return CUDA_SUCCESS;
}

/* ---- streams ---- */

static void run(const struct op *op) {
    if (op->kind == HOST_FUNCTION) op->fn(op->data);
    else memcpy(op->to, op->from, op->n);
}
static void drain(struct work *work) {
    for (int i = 0; i < work->n; i++) run(&work->ops[i]);
    work->n = 0;
}
static struct stream *stream_of(CUstream handle) {
    long i = (long)handle - 1;
    return i >= 0 && i < MAX_STREAMS && streams[i].is_used ? &streams[i] : 0;
}
/* Copies to the host wait for the synchronization, the rest is done at once; a capturing stream does nothing. */
static CUresult give(struct stream *stream, struct op op) {
    if (stream->is_capturing && is_forgetful && op.kind == HTOD) return CUDA_SUCCESS;
    struct work *work = stream->is_capturing ? &stream->captured : op.kind == DTOH ? &stream->pending : 0;
    if (!work) {
        run(&op);
        return CUDA_SUCCESS;
    }
    if (work->n == MAX_OPS) return CUDA_ERROR_OUT_OF_MEMORY;
    work->ops[work->n++] = op;
    return CUDA_SUCCESS;
}
CUresult cuStreamCreate(CUstream *handle, unsigned flags) {
    CALL_IN_CONTEXT("cuStreamCreate");
    for (long i = 0; i < MAX_STREAMS; i++)
        if (!streams[i].is_used) {
            drain(&streams[i].pending);
            memset(&streams[i], 0, sizeof streams[i]);
            streams[i].is_used = 1, streams[i].context = current();
            *handle = (CUstream)(i + 1);
            return CUDA_SUCCESS;
        }
    return CUDA_ERROR_OUT_OF_MEMORY;
}
CUresult cuStreamDestroy_v2(CUstream handle) {
    RELEASE("cuStreamDestroy");
    struct stream *stream = stream_of(handle);
    if (!stream || current() < 0) return CUDA_ERROR_INVALID_HANDLE;
    stream->is_used = 0; /* what it was given is still under way */
    return said;
}
CUresult cuStreamSynchronize(CUstream handle) {
    CALL_IN_CONTEXT("cuStreamSynchronize");
    struct stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (stream->is_capturing) return CUDA_ERROR_STREAM_CAPTURE_UNSUPPORTED;
    drain(&stream->pending);
    return CUDA_SUCCESS;
}
CUresult cuCtxSynchronize(void) {
    CALL_IN_CONTEXT("cuCtxSynchronize");
    for (int i = 0; i < MAX_STREAMS; i++)
        drain(&streams[i].pending);
    return CUDA_SUCCESS;
}
CUresult cuMemcpyHtoDAsync_v2(CUdeviceptr to, const void *from, size_t n, CUstream handle) {
    CALL_IN_CONTEXT("cuMemcpyHtoDAsync");
    struct stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!block_at((void *)to, n)) return CUDA_ERROR_INVALID_VALUE;
    return give(stream, (struct op){HTOD, (char *)to, from, n, 0, 0});
}
CUresult cuMemcpyDtoHAsync_v2(void *to, CUdeviceptr from, size_t n, CUstream handle) {
    CALL_IN_CONTEXT("cuMemcpyDtoHAsync");
    struct stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    if (!block_at((void *)from, n)) return CUDA_ERROR_INVALID_VALUE;
    return give(stream, (struct op){DTOH, to, (char *)from, n, 0, 0});
}
CUresult cuLaunchHostFunc(CUstream handle, CUhostFn fn, void *data) {
    CALL_IN_CONTEXT("cuLaunchHostFunc");
    struct stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    return give(stream, (struct op){HOST_FUNCTION, 0, 0, 0, fn, data});
}

/* ---- graphs ---- */

CUresult cuStreamBeginCapture_v2(CUstream handle, CUstreamCaptureMode mode) {
    CALL_IN_CONTEXT("cuStreamBeginCapture");
    struct stream *stream = stream_of(handle);
    if (!stream || stream->is_capturing) return CUDA_ERROR_INVALID_HANDLE;
    stream->is_capturing = 1, stream->captor = pthread_self(), stream->captured.n = 0;
    return CUDA_SUCCESS;
}
CUresult cuStreamEndCapture(CUstream handle, CUgraph *graph) {
    CALL_IN_CONTEXT("cuStreamEndCapture");
    struct stream *stream = stream_of(handle);
    if (!stream || !stream->is_capturing) return CUDA_ERROR_ILLEGAL_STATE;
    struct work *work = malloc(sizeof *work);
    *work = stream->captured;
    stream->is_capturing = 0;
    n_graphs++;
    *graph = (CUgraph)work;
    return CUDA_SUCCESS;
}
CUresult cuGraphInstantiateWithFlags(CUgraphExec *exec, CUgraph graph, unsigned long long flags) {
    CALL_IN_CONTEXT("cuGraphInstantiate");
    struct work *work = malloc(sizeof *work);
    *work = *(struct work *)graph;
    n_graphs++;
    *exec = (CUgraphExec)work;
    return CUDA_SUCCESS;
}
CUresult cuGraphLaunch(CUgraphExec exec, CUstream handle) {
    CALL_IN_CONTEXT("cuGraphLaunch");
    struct stream *stream = stream_of(handle);
    if (!stream) return CUDA_ERROR_INVALID_HANDLE;
    struct work *work = (struct work *)exec;
    CUresult result = CUDA_SUCCESS;
    for (int i = 0; i < work->n && !result; i++) result = give(stream, work->ops[i]);
    return result;
}
CUresult cuGraphExecDestroy(CUgraphExec exec) {
    RELEASE("cuGraphExecDestroy");
    free(exec);
    n_graphs--;
    return said;
}
CUresult cuGraphDestroy(CUgraph graph) {
    RELEASE("cuGraphDestroy");
    free(graph);
    n_graphs--;
    return said;
}

/* ---- words, and how cuda-python finds a function ---- */

CUresult cuGetErrorString(CUresult code, const char **text) {
    switch ((int)code) {
    case 0: *text = "no error"; break;
    case 1: *text = "invalid argument"; break;
    case 2: *text = "out of memory"; break;
    case 3: *text = "initialization error"; break;
    case 100: *text = "no CUDA-capable device is detected"; break;
    case 101: *text = "invalid device ordinal"; break;
    case 201: *text = "invalid device context"; break;
    case 400: *text = "invalid resource handle"; break;
    case 719: *text = "unspecified launch failure"; break;
    case 801: *text = "operation not supported"; break;
    case 900: *text = "operation not permitted when stream is capturing"; break;
    default: *text = "unknown error";
    }
    return CUDA_SUCCESS;
}
CUresult cuGetErrorName(CUresult code, const char **text) { return cuGetErrorString(code, text); }

CUresult cuGetProcAddress_v2(const char *symbol, void **fn, int version, cuuint64_t flags,
                             CUdriverProcAddressQueryResult *status) {
    static const char *endings[] = {"_v4", "_v3", "_v2", "WithFlags", ""};
    char name[128];
    *fn = 0;
    for (int i = 0; i < 5 && !*fn; i++) {
        snprintf(name, sizeof name, "%s%s", symbol, endings[i]);
        *fn = dlsym(RTLD_DEFAULT, name);
    }
    if (!*fn) { /* the library may not be in the global scope */
        Dl_info self;
        dladdr((void *)cuGetErrorString, &self);
        void *library = dlopen(self.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
        for (int i = 0; library && i < 5 && !*fn; i++) {
            snprintf(name, sizeof name, "%s%s", symbol, endings[i]);
            *fn = dlsym(library, name);
        }
    }
    if (status) *status = *fn ? CU_GET_PROC_ADDRESS_SUCCESS : CU_GET_PROC_ADDRESS_SYMBOL_NOT_FOUND;
    return *fn ? CUDA_SUCCESS : CUDA_ERROR_NOT_FOUND;
}
