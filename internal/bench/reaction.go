package main

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// After its probe a source sends a datagram each reactionTick for
	// reactionWindow. The ban is in force from the first that does not arrive.
	reactionTick   = 20 * time.Microsecond
	reactionWindow = 50 * time.Millisecond

	// reactionPause is between two sources.
	reactionPause = 5 * time.Millisecond

	datagramPort = 4242 // a service of the target
	datagramLen  = ethernetLen + ipLen + 8 + 8

	// Sources that are measured come from the upper half of the range, those
	// that probe meanwhile from the lower one.
	firstMeasured = 1 << 26

	maxBans = 100_000
)

// banConfig bans every source that probes, however many there are.
var banConfig = config + `[ban]
evidence = "classic"
tcp = "ban"
per_minute = 1048576
total = 1048576
[output.firewall]
`

// A reaction is how long it took from the first probe of a source to the first
// of its packets that was dropped.
type reaction struct {
	Others  int           `json:"others"` // other sources that probed, per second
	Bans    int           `json:"bans"`
	Failed  int           `json:"failed"` // not in force within reactionWindow; not in what follows
	Median  time.Duration `json:"median_ns"`
	P99     time.Duration `json:"p99_ns"`
	Longest time.Duration `json:"longest_ns"`
}

// react measures the reaction to n sources while others probe at a rate.
func (b *bench) react(ctx context.Context, n, others int) (*reaction, error) {
	d, err := startDaemon(ctx, b.daemon, banConfig, "output module runs", b.cores.Daemon)
	if err != nil {
		return nil, err
	}
	service, err := b.wire.listen()
	if err != nil {
		d.kill()
		return nil, err
	}
	defer unix.Close(service)
	r := &reactor{flood: newGenerator(b.wire.socket), rate: others, service: service}
	var took []time.Duration
	err = onThread(func() (err error) {
		if err := pin(b.cores.Generator); err != nil {
			return err
		}
		took, err = r.measureAll(ctx, n)
		return err
	})
	if err != nil {
		d.kill()
		return nil, err
	}
	if err := d.stop(); err != nil {
		return nil, err
	}
	return newReaction(took, n, others)
}

func newReaction(took []time.Duration, n, others int) (*reaction, error) {
	if len(took) == 0 {
		return nil, errors.New("not a single ban was in force in time")
	}
	slices.Sort(took)
	return &reaction{
		Others: others, Bans: n, Failed: n - len(took),
		Median: took[len(took)/2], P99: took[len(took)*99/100], Longest: took[len(took)-1],
	}, nil
}

// listen opens the target's service and has the kernel take datagrams from sources
// that it has no route to.
func (w *wire) listen() (int, error) {
	if err := w.filterForged(false); err != nil {
		return -1, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("opening a service: %w", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Port: datagramPort}); err != nil {
		unix.Close(fd)
		return -1, fmt.Errorf("binding a service: %w", err)
	}
	return fd, nil
}

// A reactor sends what the reaction is measured by. All is done by one thread, so
// that a datagram has arrived, or never will, when it has been sent.
type reactor struct {
	flood *generator
	rate  int // of other sources
	began time.Time
	sent  int // probes of other sources

	service int
}

// measureAll returns how long each of n bans took, without those that failed.
func (r *reactor) measureAll(ctx context.Context, n int) ([]time.Duration, error) {
	r.began = time.Now()
	var took []time.Duration
	for i := range uint32(n) {
		if err := r.idle(ctx, reactionPause); err != nil {
			return nil, err
		}
		d, err := r.measure(ctx, firstMeasured+i)
		if err != nil {
			return nil, err
		}
		if d > 0 {
			took = append(took, d)
		}
	}
	return took, nil
}

// measure has source i probe and returns how long it took until a datagram of it
// did not arrive, 0 if all did.
func (r *reactor) measure(ctx context.Context, i uint32) (time.Duration, error) {
	probe := newFrame()
	r.flood.writer.set(probe, i)
	datagram := newDatagram(i)
	if err := r.send(datagram); err != nil {
		return 0, err
	}
	if arrived, err := r.arrived(i); err != nil || !arrived {
		return 0, errors.Join(err, errors.New("a datagram of a source that is not banned does not arrive"))
	}
	began := time.Now()
	if err := r.send(probe); err != nil {
		return 0, err
	}
	for ctx.Err() == nil {
		elapsed := time.Since(began)
		if elapsed > reactionWindow {
			return 0, nil
		}
		if err := r.send(datagram); err != nil {
			return 0, err
		}
		if arrived, err := r.arrived(i); err != nil || !arrived {
			return elapsed, err
		}
		if err := r.others(); err != nil {
			return 0, err
		}
		for time.Since(began) < elapsed+reactionTick {
		}
	}
	return 0, ctx.Err()
}

// idle lets time pass while the others go on.
func (r *reactor) idle(ctx context.Context, d time.Duration) error {
	for end := time.Now().Add(d); time.Now().Before(end); pause(100 * time.Microsecond) {
		if err := errors.Join(r.others(), ctx.Err()); err != nil {
			return err
		}
	}
	return nil
}

// others sends the probes of other sources that are due.
func (r *reactor) others() error {
	due := int(time.Since(r.began).Seconds() * float64(r.rate))
	for r.sent < due {
		k, err := r.flood.sendBatch(uint32(r.sent), min(due-r.sent, batchSize))
		if err != nil {
			return fmt.Errorf("sending probes: %w", err)
		}
		r.sent += k
	}
	return nil
}

func (r *reactor) send(frame []byte) error {
	if _, err := unix.Write(r.flood.socket, frame); err != nil {
		return fmt.Errorf("sending a frame: %w", err)
	}
	return nil
}

// arrived reports whether a datagram of source i has arrived.
func (r *reactor) arrived(i uint32) (bool, error) {
	var payload [8]byte
	n, _, err := unix.Recvfrom(r.service, payload[:], 0)
	switch {
	case errors.Is(err, unix.EAGAIN):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("receiving a datagram: %w", err)
	}
	return n == len(payload) && binary.BigEndian.Uint32(payload[:]) == i, nil
}

// newDatagram returns a datagram of source i to the target's service.
func newDatagram(i uint32) []byte {
	f := make([]byte, datagramLen)
	copy(f, targetMAC)
	copy(f[6:], sourceMAC)
	f[12] = 0x08 // IPv4
	ip := f[ethernetLen:][:ipLen]
	ip[0], ip[8], ip[9] = 0x45, 52, unix.IPPROTO_UDP // version and length, TTL
	binary.BigEndian.PutUint16(ip[2:], datagramLen-ethernetLen)
	binary.BigEndian.PutUint32(ip[12:], sourceAddr(i))
	copy(ip[16:], targetAddr[:])
	binary.BigEndian.PutUint16(ip[10:], checksum(sum16(ip)))

	udp := f[ethernetLen+ipLen:] // without checksum, which IPv4 allows
	binary.BigEndian.PutUint16(udp, datagramPort)
	binary.BigEndian.PutUint16(udp[2:], datagramPort)
	binary.BigEndian.PutUint16(udp[4:], datagramLen-ethernetLen-ipLen)
	binary.BigEndian.PutUint32(udp[8:], i)
	return f
}
