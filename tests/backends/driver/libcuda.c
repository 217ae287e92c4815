/* A driver that only looks at what it is told: what stands behind the real cuda-bindings in live.py.
 *
 * GPU memory is the host's. Launches do nothing but write down their arguments, of which stub_kernel() tells the sizes.
 * The bindings look functions up by cuGetProcAddress_v2, under the names without their versions.
 */
#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct { char name[256]; int count, taken, bytes[64]; } Kernel;
typedef struct { Kernel *kernel; unsigned grid[3], block[3], shared; uint64_t values[64]; } Launch;
typedef struct { Launch nodes[256]; int count; } Graph;
/* CUDA_KERNEL_NODE_PARAMS_v2 of cuda.h */
typedef struct { Kernel *func; unsigned grid[3], block[3], shared; void **params, **extra; void *kern, *ctx; } Node;

static Kernel kernels[64];
static int known, alive;
static char text[1 << 20];
static size_t end;

#define TELL(...) (end += (size_t)snprintf(text + end, sizeof text - end, __VA_ARGS__))

const char *stub_log(void) { return text; }
void stub_clear(void) { text[end = 0] = 0; }
int stub_alive(void) { return alive; }
void stub_kernel(const char *name, int count, const int *bytes) {
    Kernel *made = &kernels[known++];
    snprintf(made->name, sizeof made->name, "%s", name);
    made->count = count;
    memcpy(made->bytes, bytes, sizeof(int) * (size_t)count);
}

static int told(const char *name) { TELL("%s\n", name); return 0; }
static void run(const Launch *launch, void *stream) {
    TELL("launch %s %u,%u,%u %u,%u,%u %u %d", launch->kernel->name, launch->grid[0], launch->grid[1], launch->grid[2],
         launch->block[0], launch->block[1], launch->block[2], launch->shared, stream != NULL);
    for (int i = 0; i < launch->kernel->count; i++) TELL(" %llu", (unsigned long long)launch->values[i]);
    TELL("\n");
}
static void take(Launch *launch, Kernel *kernel, const unsigned *grid, const unsigned *block, unsigned shared,
                 void **params) {
    memset(launch, 0, sizeof *launch);
    launch->kernel = kernel, launch->shared = shared;
    memcpy(launch->grid, grid, sizeof launch->grid);
    memcpy(launch->block, block, sizeof launch->block);
    for (int i = 0; i < kernel->count; i++) memcpy(&launch->values[i], params[i], (size_t)kernel->bytes[i]);
}

static int init(unsigned flags) { (void)flags; return told("cuInit"); }
static int version(int *out) { *out = 13000; return 0; }
static int device(int *out, int ordinal) { *out = ordinal; return 0; }
static int attribute(int *out, int kind, int dev) { (void)dev; *out = kind == 75 ? 8 : 0; return 0; }
static int name(char *out, int size, int dev) { (void)dev; snprintf(out, (size_t)size, "a stub"); return 0; }
static int retain(void **out, int dev) { (void)dev; *out = text; return 0; }
static int current(void *context) { return context == text ? 0 : 201; }
static int get_current(void **out) { *out = text; return 0; }
static int error_name(int status, const char **out) { *out = status == 2 ? "CUDA_ERROR_OUT_OF_MEMORY" : "CUDA_ERROR"; return 0; }
static int make(void **out, unsigned flags) { (void)flags; alive++; *out = calloc(1, 16); return 0; }
static int drop(void *what) { alive--; free(what); return 0; }
static int ok(void) { return 0; }
static int alloc(uint64_t *out, size_t size) {
    if (size > (1u << 28)) return 2;
    alive++; *out = (uint64_t)(uintptr_t)aligned_alloc(256, (size + 255) / 256 * 256);
    TELL("alloc %zu\n", size);
    return 0;
}
static int alloc_host(void **out, size_t size) { alive++; *out = malloc(size); return 0; }
static int info(size_t *free_, size_t *total) { *free_ = 5, *total = 1u << 28; return 0; }
static int copy(uint64_t to, uint64_t from, size_t size) {
    memcpy((void *)(uintptr_t)to, (void *)(uintptr_t)from, size);
    TELL("copy %zu\n", size);
    return 0;
}
static int load(void **out, const void *image) { return memcmp(image, "\177ELF", 4) ? 200 : make(out, 0); }
static int function(Kernel **out, void *module, const char *wanted) {
    (void)module;
    for (int i = 0; i < known; i++) /* kernels of one name are asked for in the order in which they were told */
        if (!kernels[i].taken && !strcmp(kernels[i].name, wanted)) return kernels[i].taken = 1, *out = &kernels[i], 0;
    return 500;
}
static int attribute_of(Kernel *f, int kind, int value) { TELL("attribute %s %d %d\n", f->name, kind, value); return 0; }
static int launch(Kernel *f, unsigned x, unsigned y, unsigned z, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                  void *stream, void **params, void **extra) {
    Launch made;
    if (extra) return 1;
    take(&made, f, (unsigned[]){x, y, z}, (unsigned[]){bx, by, bz}, shared, params);
    run(&made, stream);
    return 0;
}
static int graph(Graph **out, unsigned flags) { (void)flags; alive++; *out = calloc(1, sizeof(Graph)); return 0; }
static int add(void **out, Graph *to, void **before, size_t count, const Node *node) {
    if (count != (size_t)(to->count > 0) || (count && before[0] != &to->nodes[to->count - 1]) || node->extra) return 1;
    take(&to->nodes[to->count], node->func, node->grid, node->block, node->shared, node->params);
    *out = &to->nodes[to->count++];
    return 0;
}
static int instantiate(Graph **out, Graph *from, unsigned long long flags) {
    if (flags) return 1;
    alive++; *out = malloc(sizeof(Graph)); memcpy(*out, from, sizeof(Graph));
    ((Graph *)*out)->nodes[255].kernel = (Kernel *)from; /* whose nodes are known */
    return told("instantiate");
}
static int change(Graph *exec, void *node, const Node *params) {
    Graph *from = (Graph *)exec->nodes[255].kernel;
    take(&exec->nodes[(Launch *)node - from->nodes], params->func, params->grid, params->block, params->shared, params->params);
    return told("change");
}
static int replay(Graph *exec, void *stream) {
    for (int i = 0; i < exec->count; i++) run(&exec->nodes[i], stream);
    return told("replay");
}

static const struct { const char *name; void *function; } table[] = {
    {"cuInit", init}, {"cuDriverGetVersion", version}, {"cuDeviceGet", device}, {"cuDeviceGetAttribute", attribute},
    {"cuDeviceGetName", name}, {"cuDevicePrimaryCtxRetain", retain}, {"cuCtxSetCurrent", current},
    {"cuCtxGetCurrent", get_current}, {"cuGetErrorName", error_name}, {"cuStreamCreate", make}, {"cuStreamDestroy", drop},
    {"cuStreamSynchronize", ok}, {"cuStreamWaitEvent", ok}, {"cuEventCreate", make}, {"cuEventDestroy", drop},
    {"cuEventRecord", ok}, {"cuEventQuery", ok}, {"cuEventSynchronize", ok}, {"cuMemAlloc", alloc}, {"cuMemFree", drop},
    {"cuMemAllocHost", alloc_host}, {"cuMemFreeHost", drop}, {"cuMemGetInfo", info}, {"cuMemcpyHtoD", copy},
    {"cuMemcpyDtoH", copy}, {"cuMemcpyHtoDAsync", copy}, {"cuMemcpyDtoHAsync", copy}, {"cuMemcpyDtoDAsync", copy},
    {"cuModuleLoadData", load}, {"cuModuleUnload", drop}, {"cuModuleGetFunction", function},
    {"cuFuncSetAttribute", attribute_of}, {"cuLaunchKernel", launch}, {"cuGraphCreate", graph}, {"cuGraphDestroy", drop},
    {"cuGraphAddKernelNode", add}, {"cuGraphInstantiateWithFlags", instantiate}, {"cuGraphInstantiate", instantiate},
    {"cuGraphExecDestroy", drop}, {"cuGraphExecKernelNodeSetParams", change}, {"cuGraphLaunch", replay},
};

int cuGetProcAddress_v2(const char *wanted, void **out, int cuda, uint64_t flags, int *status) {
    (void)cuda, (void)flags;
    *out = NULL;
    for (size_t i = 0; i < sizeof table / sizeof *table; i++)
        if (!strcmp(table[i].name, wanted)) *out = table[i].function;
    if (!strcmp(wanted, "cuGetProcAddress")) *out = cuGetProcAddress_v2;
    if (status) *status = *out ? 0 : 1;
    return *out ? 0 : 500;
}
