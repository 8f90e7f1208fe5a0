/* NVML's symbols over a file: stands in for libnvidia-ml.so.1, so that the real binding runs.
 *
 * $RAE_FAKE_NVML names the file; it is read anew at each call. Lines, numbers in MiB and percent:
 *   gpu UUID TOTAL USED PERCENT [ENC DEC]    a GPU, in order; its bus address is 0000:0N:00.0
 *   proc GPU PID MEMORY SHARE [ENC DEC [AGE]]      a process on GPU number N; MEMORY -1: not
 *                                            available; its sample is AGE seconds old
 *   graphics GPU PID MEMORY SHARE [ENC DEC [AGE]]  the same, with a graphics context
 *   encoder GPU PID WIDTH HEIGHT             it encodes video
 *   capture GPU PID WIDTH HEIGHT             it captures the screen (FBC)
 *   sample GPU PERCENT [AGE]                 one of the samples of GPU number N's use; without any
 *                                            line there is one, of now
 *   time MICROSECONDS                        the clock of the samples' stamps; else the wall clock
 *   error FUNCTION CODE                      this function fails (a lost GPU is 15)
 *   unsupported FUNCTION                     this function is not for this GPU
 *   hang FUNCTION                            this function never returns
 * Each call's name goes into $RAE_FAKE_NVML.calls. */
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define MANY 16
#define MIB (1024ULL * 1024ULL)
enum { OK = 0, INVALID = 2, UNSUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, UNKNOWN = 999 };

typedef struct { char uuid[96]; double total, used, percent, enc, dec; } Gpu;
typedef struct {
    int gpu, graphics;
    unsigned pid;
    double memory;
    unsigned share, enc, dec;
    double age;
} Proc;
typedef struct { int gpu, capture; unsigned pid, width, height; } Stream;
typedef struct { unsigned pid; unsigned long long used; unsigned gi, ci; } ProcInfo;
typedef struct { unsigned pid; unsigned long long stamp; unsigned sm, mem, enc, dec; } Sample;
typedef struct { unsigned long long total, free, used; } Memory;
typedef struct { unsigned version; unsigned long long total, reserved, free, used; } Memory2;
typedef struct { unsigned gpu, memory; } Rates;
typedef struct { unsigned id, pid, vgpu, codec, width, height, fps, latency; } Encoder;
typedef struct {
    unsigned id, pid, vgpu, display, type, flags, max_width, max_height, width, height, fps, latency;
} Capture;
typedef struct { unsigned long long stamp; union { double wide; unsigned number; } value; } Percent;

static Gpu gpus[MANY];
static Proc procs[MANY * MANY];
static Stream streams[MANY];
static struct { int gpu; unsigned percent; double age; } samples[MANY];
static unsigned long long now;
static int gpu_count, proc_count, stream_count, sample_count;

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
    struct timespec wall;
    clock_gettime(CLOCK_REALTIME, &wall);
    now = wall.tv_sec * 1000000ULL + wall.tv_nsec / 1000;
    gpu_count = proc_count = stream_count = sample_count = 0;
    while (fgets(line, sizeof line, file)) {
        Gpu *gpu = &gpus[gpu_count];
        Proc *proc = &procs[proc_count];
        Stream *stream = &streams[stream_count];
        gpu->enc = gpu->dec = proc->enc = proc->dec = proc->age = 0;
        samples[sample_count % MANY].age = 0;
        if (sscanf(line, "%127s", word) != 1) continue;
        if (gpu_count < MANY && sscanf(line, "gpu %95s %lf %lf %lf %lf %lf", gpu->uuid, &gpu->total,
                                       &gpu->used, &gpu->percent, &gpu->enc, &gpu->dec) >= 4) {
            gpu_count++;
        } else if (proc_count < MANY * MANY && (!strcmp(word, "proc") || !strcmp(word, "graphics"))) {
            proc->graphics = !strcmp(word, "graphics");
            proc_count += sscanf(line, "%*s %d %u %lf %u %u %u %lf", &proc->gpu, &proc->pid,
                                 &proc->memory, &proc->share, &proc->enc, &proc->dec,
                                 &proc->age) >= 4;
        } else if (stream_count < MANY && (!strcmp(word, "encoder") || !strcmp(word, "capture"))) {
            stream->capture = !strcmp(word, "capture");
            stream_count += sscanf(line, "%*s %d %u %u %u", &stream->gpu, &stream->pid,
                                   &stream->width, &stream->height) == 4;
        } else if (sample_count < MANY &&
                   sscanf(line, "sample %d %u %lf", &samples[sample_count].gpu,
                          &samples[sample_count].percent, &samples[sample_count].age) >= 2) {
            sample_count++;
        } else if (sscanf(line, "time %llu", &now) == 1) {
            continue;
        } else if (sscanf(line, "unsupported %127s", word) == 1 && !strcmp(word, name)) {
            code = UNSUPPORTED;
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
/* When a sample was taken. */
static unsigned long long stamp_of(double age) { return now - (long long)(age * 1e6); }

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
        if (proc->gpu != (int)(long)device - 1 || !(proc->share || proc->enc || proc->dec)) continue;
        if (stamp_of(proc->age) <= since) continue;
        if (found && count < *room) {
            Sample sample = {proc->pid, stamp_of(proc->age), proc->share, 0, proc->enc, proc->dec};
            found[count] = sample;
        }
        count++;
    }
    int fits = found && count <= *room;
    *room = count;
    return !count ? NOT_FOUND : fits ? OK : TOO_SMALL;
}

int nvmlDeviceGetEncoderUtilization(void *device, unsigned *percent, unsigned *period) {
    ENTER;
    GPU_OF(device);
    *percent = gpu->enc;
    *period = 167000;
    return OK;
}

int nvmlDeviceGetDecoderUtilization(void *device, unsigned *percent, unsigned *period) {
    ENTER;
    GPU_OF(device);
    *percent = gpu->dec;
    *period = 167000;
    return OK;
}

int nvmlDeviceGetSamples(void *device, unsigned type, unsigned long long since, unsigned *kind,
                         unsigned *room, Percent *found) {
    (void)type;
    ENTER;
    GPU_OF(device);
    if (!sample_count) {
        samples[0].gpu = gpu - gpus;
        samples[0].percent = gpu->percent;
        samples[0].age = 0;
        sample_count = 1;
    }
    unsigned count = 0;
    for (int at = 0; at < sample_count; at++) {
        if (samples[at].gpu != gpu - gpus || stamp_of(samples[at].age) <= since) continue;
        if (found && count < *room) {
            found[count].stamp = stamp_of(samples[at].age);
            found[count].value.number = samples[at].percent;
        }
        count++;
    }
    *kind = 1;
    *room = count;
    return count ? OK : NOT_FOUND;
}

static Stream *stream_of(void *device, int capture, unsigned number) {
    for (int at = 0; at < stream_count; at++)
        if (streams[at].gpu == (int)(long)device - 1 && streams[at].capture == capture && !number--)
            return &streams[at];
    return NULL;
}

int nvmlDeviceGetEncoderSessions(void *device, unsigned *room, Encoder *found) {
    ENTER;
    unsigned count = 0;
    for (Stream *one; (one = stream_of(device, 0, count)); count++) {
        Encoder session = {count, one->pid, 0, 0, one->width, one->height, 60, 1};
        if (found && count < *room) found[count] = session;
    }
    *room = count;
    return OK;
}

int nvmlDeviceGetFBCSessions(void *device, unsigned *room, Capture *found) {
    ENTER;
    unsigned count = 0;
    for (Stream *one; (one = stream_of(device, 1, count)); count++) {
        Capture session = {.id = count, .pid = one->pid, .width = one->width, .height = one->height};
        if (found && count < *room) found[count] = session;
    }
    *room = count;
    return OK;
}
