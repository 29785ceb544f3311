/* Calls one kernel where there is no TVM: kernel INPUT OUTPUT.

   INPUT is the number of tensors, then of each three int32 (type code, bits, dimensions), its shape in int64 and its
   data; the last one is what the kernel writes, and OUTPUT is its data. Layouts of tvm-ffi's and DLPack's headers. */
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

typedef struct {
    int32_t type;
    uint32_t zero;
    union {
        void *pointer;
        int64_t number;
    } value;
} Any;

typedef struct {
    void *data;
    int32_t device, device_id, dimensions;
    uint8_t code, bits;
    uint16_t lanes;
    int64_t *shape, *strides;
    uint64_t offset;
} Tensor;

enum { TENSOR = 7, MOST = 8 };

int __tvm_ffi_main(void *self, const Any *arguments, int32_t count, Any *result);

void TVMFFIErrorSetRaisedFromCStrParts(const char *kind, const char **parts, int32_t count) {
    fprintf(stderr, "%s: ", kind);
    for (int i = 0; i < count; i++) fputs(parts[i], stderr);
    fputc('\n', stderr);
}

static void *allocate(int device, int id, uint64_t bytes, int code, int bits) {
    return aligned_alloc(64, (bytes + 63) / 64 * 64);
}

static int release(int device, int id, void *data) {
    free(data);
    return 0;
}

void *(*__TVMBackendAllocWorkspace)(int, int, uint64_t, int, int) = allocate;
int (*__TVMBackendFreeWorkspace)(int, int, void *) = release;

static void need(void *to, size_t bytes, FILE *file) {
    if (fread(to, 1, bytes, file) != bytes) exit(3);
}

int main(int count, char **names) {
    FILE *file = fopen(names[1], "rb");
    int32_t tensors, head[3];
    static Tensor tensor[MOST];
    static Any arguments[MOST], result;
    size_t bytes = 0;
    need(&tensors, 4, file);
    for (int i = 0; i < tensors; i++) {
        need(head, sizeof head, file);
        int64_t *shape = malloc(8 * head[2]);
        need(shape, 8 * head[2], file);
        bytes = head[1] / 8;
        for (int d = 0; d < head[2]; d++) bytes *= shape[d];
        Tensor t = {allocate(1, 0, bytes, 0, 8), 1, 0, head[2], head[0], head[1], 1, shape};
        need(t.data, bytes, file);
        tensor[i] = t;
        arguments[i].type = TENSOR;
        arguments[i].value.pointer = &tensor[i];
    }
    fclose(file);
    if (__tvm_ffi_main(0, arguments, tensors, &result)) return 4;
    file = fopen(names[2], "wb");
    fwrite(tensor[tensors - 1].data, 1, bytes, file);
    return fclose(file);
}
