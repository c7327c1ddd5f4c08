/* The engine: runs .mnet files, MobileNets that `mobilenets export --to native` wrote. The only header to include.
 *
 *     struct mnet_model *model = mnet_open(bytes, size, why, sizeof why);
 *     struct mnet_session *session = mnet_session(model, 1, NULL, why, sizeof why);
 *     mnet_run(session, image, 1, outputs);
 *
 * A model is read-only and shared by any number of sessions; a session is for one call at a time. Functions that can
 * fail give NULL and write one line into `why`, of `room` bytes. */
#ifndef MNET_H
#define MNET_H

#include <stddef.h>
#include <stdint.h>

#if !defined(MNET_API)
#if defined(_WIN32)
#define MNET_API __declspec(dllexport)
#else
#define MNET_API __attribute__((visibility("default")))
#endif
#endif

#ifdef __cplusplus
extern "C" {
#endif

enum { MNET_OK = 0, MNET_BUSY = 1, MNET_WRONG = 2, MNET_MEMORY = 3 };

/* Verify the `size` bytes of a file, all of it, before anything runs. They begin at a multiple of 64 (as mapped files
 * do), stay the caller's, and have to stay as they are until mnet_close. */
MNET_API struct mnet_model *mnet_open(const void *bytes, size_t size, char *why, size_t room);
MNET_API void mnet_close(struct mnet_model *model); /* after its sessions' end */

MNET_API const char *mnet_card(const struct mnet_model *model, size_t *size); /* JSON, not terminated */
MNET_API void mnet_image(const struct mnet_model *model, int *height, int *width);
MNET_API int mnet_outputs(const struct mnet_model *model);
/* An output's name; its shape, how many numbers in `rank`: none, channels, or rows and columns, or channels, height and
 * width. */
MNET_API const char *mnet_output(const struct mnet_model *model, int i, int *rank, int shape[3]);

/* Memory and threads to run a model with. `isa`: a table of kernels by its name, or NULL for the best that there is. */
MNET_API struct mnet_session *mnet_session(const struct mnet_model *model, int threads, const char *isa, char *why,
                                           size_t room);
MNET_API void mnet_end(struct mnet_session *session);
MNET_API const char *mnet_isa(const struct mnet_session *session);
MNET_API size_t mnet_memory(const struct mnet_session *session); /* bytes it holds, without the model's */

/* n images, RGB [n][height][width][3], to every output, [n][...]. MNET_BUSY where another call is under way, MNET_WRONG
 * for less than one image, MNET_MEMORY where there is none for so many threads at once. */
MNET_API int mnet_run(struct mnet_session *session, const uint8_t *images, int n, float *const outputs[]);

/* Operations, in the order they are computed; what the first thread took for each on one image, in nanoseconds. */
MNET_API int mnet_layer_count(const struct mnet_model *model);
MNET_API const char *mnet_layer(const struct mnet_model *model, int i, int *group);
MNET_API int mnet_layers(struct mnet_session *session, const uint8_t *image, float *const outputs[],
                         double nanoseconds[]);

#ifdef __cplusplus
}
#endif
#endif
