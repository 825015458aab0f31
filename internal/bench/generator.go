package main

import (
	"context"
	"errors"
	"fmt"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchSize bounds the frames handed to the kernel in one call.
const batchSize = 64

// mmsghdr is the kernel's struct mmsghdr.
type mmsghdr struct {
	hdr    unix.Msghdr
	length uint32 // the kernel writes it
}

// A generator sends probes through a packet socket, each from a new source.
type generator struct {
	socket   int
	writer   frameWriter
	frames   [batchSize][]byte
	iovecs   [batchSize]unix.Iovec
	messages [batchSize]mmsghdr
}

func newGenerator(socket int) *generator {
	g := &generator{socket: socket, writer: newFrameWriter()}
	for i := range batchSize {
		g.frames[i] = newFrame()
		g.iovecs[i].Base = &g.frames[i][0]
		g.iovecs[i].SetLen(frameLen)
		g.messages[i].hdr.Iov = &g.iovecs[i]
		g.messages[i].hdr.SetIovlen(1)
	}
	return g
}

// send sends the probes of the sources 0 to n-1 at a rate in probes per second,
// or as fast as it can, and stops early at limit. It returns how many it sent.
// It blocks its thread and paces best on one of its own.
func (g *generator) send(ctx context.Context, n, rate int, limit time.Duration) (int, error) {
	began := time.Now()
	sent := 0
	for sent < n && ctx.Err() == nil {
		elapsed := time.Since(began)
		if elapsed > limit {
			break
		}
		due := n
		if rate != unpaced {
			due = min(n, 1+int(elapsed.Seconds()*float64(rate)))
		}
		if due == sent {
			next := time.Duration(float64(sent) / float64(rate) * float64(time.Second))
			pause(next - elapsed)
			continue
		}
		k, err := g.sendBatch(uint32(sent), min(due-sent, batchSize))
		if err != nil {
			return sent, fmt.Errorf("sending probes: %w", err)
		}
		sent += k
	}
	return sent, ctx.Err()
}

// sendBatch sends the probes of k sources from the given one on and returns how
// many the kernel took.
func (g *generator) sendBatch(first uint32, k int) (int, error) {
	for i := range k {
		g.writer.set(g.frames[i], first+uint32(i))
	}
	// Raw: the thread belongs to the generator alone, so the scheduler need
	// not look for other work for it.
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDMMSG, uintptr(g.socket),
		uintptr(unsafe.Pointer(&g.messages[0])), uintptr(k), 0, 0, 0)
	switch {
	case errno == 0:
		return int(n), nil
	case errors.Is(errno, unix.ENOBUFS), errors.Is(errno, unix.EINTR):
		return 0, nil // the receiving queue is full: the same frames again
	}
	return 0, errno
}

// pause sleeps on the calling thread, more exactly than the runtime's timers.
func pause(d time.Duration) {
	t := unix.NsecToTimespec(d.Nanoseconds())
	_ = unix.Nanosleep(&t, nil) // woken early is as good
}
