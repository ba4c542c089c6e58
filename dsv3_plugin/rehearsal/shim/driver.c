/* The CUDA driver's library, as far as torch asks it without a GPU.
 *
 * Loaded beside cudart.c under the driver's own name, so that it is there on a machine that has no
 * driver, and in its place where there is one. torch asks whether a device is in use ("has a primary
 * context") before it synchronises streams after a backward. As in a run, device 0 is: a rank sees
 * its own.
 */
int cuInit(unsigned flags) { return (void)flags, 0; }

int cuDevicePrimaryCtxGetState(int device, unsigned *flags, int *active) {
    *flags = 0;
    *active = device == 0;
    return 0;
}
