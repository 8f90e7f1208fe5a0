/* NVML's symbols over a file: stands in for libnvidia-ml.so.1, so that the real binding runs.
 *
 * $RAE_FAKE_NVML names the file; it is read anew at each call. Lines, numbers in MiB and percent:
 *   gpu UUID TOTAL USED PERCENT      a GPU, in order; its bus address is 0000:0N:00.0
 *   proc GPU PID MEMORY SHARE        a process on GPU number N; MEMORY -1: not available
 *   graphics GPU PID MEMORY SHARE    the same, with a graphics context
 *   error FUNCTION CODE              this function fails (a lost GPU is 15)
 *   hang FUNCTION                    this function never returns
 * Each call's name goes into $RAE_FAKE_NVML.calls. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MANY 16
#define MIB (1024ULL * 1024ULL)
enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, UNKNOWN = 999 };

typedef struct { char uuid[96]; double total, used, percent; } Gpu;
typedef struct { int gpu, graphics; unsigned pid; double memory; unsigned share; } Proc;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } ProcInfo;
typedef struct { unsigned pid; unsigned long long stamp; unsigned sm, mem, enc, dec; } Sample;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned gpu, memory; } Rates;

static Gpu gpus[MANY];
static Proc procs[MANY * MANY];
static int gpu_count, proc_count;

static void note(const char *name) {
    char path[4096];
    snprintf(path, sizeof path, "%s.calls", getenv("RAE_FAKE_NVML"));
    int file = open(path, O_WRONLY | O_CREAT | O_APPEND, 0644);
    if (file >= 0) {
        dprintf(file, "%s\n", name);
        close(file);
    }
}

/* Read the file; the error code that this function shall give. */
static int enter(const char *name) {
    const char *path = getenv("RAE_FAKE_NVML");
    char line[512], word[128];
    int code = OK, wanted;
    if (!path) return UNKNOWN;
    note(name);
    FILE *file = fopen(path, "r");
    if (!file) return UNKNOWN;
    gpu_count = proc_count = 0;
    while (fgets(line, sizeof line, file)) {
        Gpu *gpu = &gpus[gpu_count];
        Proc *proc = &procs[proc_count];
        if (gpu_count < MANY && sscanf(line, "gpu %95s %lf %lf %lf", gpu->uuid, &gpu->total,
                                       &gpu->used, &gpu->percent) == 4) {
            gpu_count++;
        } else if (proc_count < MANY * MANY &&
                   sscanf(line, "%127s %d %u %lf %u", word, &proc->gpu, &proc->pid, &proc->memory,
                          &proc->share) == 5) {
            proc->graphics = !strcmp(word, "graphics");
            proc_count++;
        } else if (sscanf(line, "error %127s %d", word, &wanted) == 2 && !strcmp(word, name)) {
            code = wanted;
        } else if (sscanf(line, "hang %127s", word) == 1 && !strcmp(word, name)) {
            for (;;) pause();
        }
    }
    fclose(file);
    return code;
}

#define ENTER int code = enter(__func__); if (code) return code
#define GPU_OF(device) Gpu *gpu = &gpus[(int)(long)(device) - 1]

int nvmlInitWithFlags(unsigned flags) { (void)flags; ENTER; return OK; }
int nvmlInit_v2(void) { ENTER; return OK; }
int nvmlShutdown(void) { ENTER; return OK; }
const char *nvmlErrorString(int code) { return code == 15 ? "GPU is lost" : "an error of the test"; }

int nvmlSystemGetDriverVersion(char *text, unsigned length) {
    ENTER;
    snprintf(text, length, "555.55");
    return OK;
}

int nvmlSystemGetCudaDriverVersion_v2(int *version) {
    ENTER;
    *version = 12050;
    return OK;
}

int nvmlDeviceGetCount_v2(unsigned *count) {
    ENTER;
    *count = gpu_count;
    return OK;
}

int nvmlDeviceGetHandleByIndex_v2(unsigned index, void **device) {
    ENTER;
    *device = (void *)(long)(index + 1);
    return (int)index < gpu_count ? OK : INVALID;
}

int nvmlDeviceGetHandleByPciBusId_v2(const char *address, void **device) {
    ENTER;
    int index = -1;
    sscanf(address, "0000:0%d:00.0", &index);
    *device = (void *)(long)(index + 1);
    return index >= 0 && index < gpu_count ? OK : NOT_FOUND;
}

int nvmlDeviceGetUUID(void *device, char *text, unsigned length) {
    ENTER;
    GPU_OF(device);
    snprintf(text, length, "%s", gpu->uuid);
    return OK;
}

int nvmlDeviceGetName(void *device, char *text, unsigned length) {
    (void)device;
    ENTER;
    snprintf(text, length, "Fake RTX 4080");
    return OK;
}

int nvmlDeviceGetMemoryInfo(void *device, Memory *memory) {
    ENTER;
    GPU_OF(device);
    memory->total = gpu->total * MIB;
    memory->used = gpu->used * MIB;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetMemoryInfo_v2(void *device, Memory2 *memory) {
    ENTER;
    GPU_OF(device);
    memory->total = gpu->total * MIB;
    memory->used = gpu->used * MIB;
    memory->reserved = 0;
    memory->free = memory->total - memory->used;
    return OK;
}

int nvmlDeviceGetUtilizationRates(void *device, Rates *rates) {
    ENTER;
    GPU_OF(device);
    rates->gpu = gpu->percent;
    rates->memory = 0;
    return OK;
}

static int processes(void *device, int graphics, unsigned *room, ProcInfo *found) {
    unsigned count = 0;
    for (int at = 0; at < proc_count; at++) {
        Proc *proc = &procs[at];
        if (proc->gpu != (int)(long)device - 1 || proc->graphics != graphics) continue;
        if (found && count < *room) {
            found[count].pid = proc->pid;
            found[count].used = proc->memory < 0 ? ~0ULL : (unsigned long long)(proc->memory * MIB);
            found[count].gi = found[count].ci = ~0U;
        }
        count++;
    }
    int fits = !count || (found && count <= *room);
    *room = count;
    return fits ? OK : TOO_SMALL;
}

int nvmlDeviceGetComputeRunningProcesses_v3(void *device, unsigned *room, ProcInfo *found) {
    ENTER;
    return processes(device, 0, room, found);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(void *device, unsigned *room, ProcInfo *found) {
    ENTER;
    return processes(device, 1, room, found);
}

int nvmlDeviceGetProcessUtilization(void *device, Sample *found, unsigned *room,
                                    unsigned long long since) {
    ENTER;
    unsigned count = 0;
    for (int at = 0; at < proc_count; at++) {
        Proc *proc = &procs[at];
        if (proc->gpu != (int)(long)device - 1 || !proc->share) continue;
        if (found && count < *room) {
            Sample sample = {proc->pid, since + 1, proc->share, 0, 0, 0};
            found[count] = sample;
        }
        count++;
    }
    int fits = found && count <= *room;
    *room = count;
    return !count ? NOT_FOUND : fits ? OK : TOO_SMALL;
}
