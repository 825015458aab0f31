package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/net/bpf"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

// Names in [SniffConfig] that stand for interfaces by their kind.
const (
	AllInterfaces  = "all"
	AllButLoopback = "all-but-loopback"
)

// A SniffConfig says what a [PacketSocket] captures.
type SniffConfig struct {
	// Interfaces is either one of AllInterfaces and AllButLoopback, or names
	// of interfaces. Empty means AllInterfaces. Interfaces that belong to a
	// bridge, bond or team are captured only if named, because their frames
	// come again from it.
	Interfaces []string

	TCP, UDP detector.PortSet // trap ports

	// RingSize is the memory shared with the kernel, in bytes; packets that
	// find it full are lost and counted. Zero means 16 MiB.
	RingSize int

	// HandOver is how long the kernel may wait for more packets before it
	// hands over what it has; whole milliseconds. Zero means 1 ms.
	HandOver time.Duration

	Log *logrus.Entry // nil means silence
}

const (
	defaultRingSize = 16 << 20
	defaultHandOver = time.Millisecond
)

// A PacketSocket receives the packets of all wanted interfaces that may be
// probes. Its methods are safe for concurrent use.
type PacketSocket struct {
	log  *logrus.Entry
	file *os.File // the socket, for the runtime's poller
	conn syscall.RawConn
	host *hostWatcher

	reading sync.Mutex // held by whoever uses ring
	ring    *ring

	watch atomic.Pointer[watch] // replaced under mu only

	mu       sync.Mutex
	attached []bpf.RawInstruction // the kernel's filter
	stats    Stats
	closed   bool
}

// Open opens a packet socket in the network namespace of the calling thread.
// It needs CAP_NET_RAW; nothing after it does. Packets are collected from now
// on, so [Sniff] should follow soon.
//
// It is an error if none of the wanted interfaces is up. Interfaces that
// appear later are captured too.
func Open(cfg SniffConfig) (_ *PacketSocket, err error) {
	rule, err := newInterfaceRule(cfg.Interfaces)
	if err != nil {
		return nil, err
	}
	if cfg.Log == nil {
		cfg.Log = silentLog()
	}
	host, err := watchHost()
	if err != nil {
		return nil, err
	}
	s := &PacketSocket{log: cfg.Log, host: host}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.Close())
		}
	}()
	view, err := host.view()
	if err != nil {
		return nil, err
	}
	if !rule.usable(view) {
		return nil, fmt.Errorf("no usable interface: asked for %v; this host has %v", rule, view)
	}
	for _, name := range rule.missing(view) {
		s.log.WithField("interface", name).Warn("interface is not there; capture on it begins when it appears")
	}
	if err := s.open(cfg, &watch{rule: rule, view: view, tcp: cfg.TCP, udp: cfg.UDP}); err != nil {
		return nil, err
	}
	return s, nil
}

// open makes the socket. It comes without a protocol, so that it receives
// nothing before filter and ring are in place.
//
// The time of arrival is the ring's: the kernel takes it in the same interrupt
// for packets that pass the filter, whereas SO_TIMESTAMPNS would have it take
// one for every packet of the host.
func (s *PacketSocket) open(cfg SniffConfig, w *watch) error {
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if errors.Is(err, unix.EPERM) {
		return fmt.Errorf("open a packet socket: %w; run as root or with CAP_NET_RAW", err)
	}
	if err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	s.file = os.NewFile(uintptr(fd), "packet socket")
	if s.conn, err = s.file.SyscallConn(); err != nil {
		return fmt.Errorf("open a packet socket: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("ignore outgoing packets: %w; Linux 4.20 or later is needed", err)
	}
	if err := s.publish(w); err != nil {
		return err
	}
	size, timeout := cfg.RingSize, cfg.HandOver
	if size <= 0 {
		size = defaultRingSize
	}
	if timeout <= 0 {
		timeout = defaultHandOver
	}
	if s.ring, err = openRing(fd, size, timeout); err != nil {
		return err
	}
	all := &unix.SockaddrLinklayer{Protocol: networkOrder(unix.ETH_P_ALL)}
	if err := unix.Bind(fd, all); err != nil {
		return fmt.Errorf("bind the packet socket: %w", err)
	}
	return nil
}

// networkOrder returns n as it lies in memory on the network.
func networkOrder(n uint16) uint16 {
	return binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, n))
}

// Close frees what the socket holds. A [Sniff] that still runs ends with an
// error. Stats can still be called.
func (s *PacketSocket) Close() error {
	if !s.markClosed() {
		return nil
	}
	errs := []error{s.host.close()}
	if s.file != nil {
		errs = append(errs, s.file.Close()) // wakes the reader
	}
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.ring != nil {
		errs = append(errs, s.ring.close())
		s.ring = nil
	}
	return errors.Join(errs...)
}

// markClosed reads the counters a last time. It reports false if the socket
// was closed before.
func (s *PacketSocket) markClosed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.collectLocked()
	s.closed = true
	return true
}

// SetPorts replaces the trap ports, in the kernel's filter at once. If that
// fails, the old ones stay.
func (s *PacketSocket) SetPorts(tcp, udp detector.PortSet) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := *s.watch.Load()
	w.tcp, w.udp = tcp, udp
	return s.publishLocked(&w)
}

// setView replaces what is known of the host.
func (s *PacketSocket) setView(v *hostView) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := *s.watch.Load()
	w.view = v
	return s.publishLocked(&w)
}

func (s *PacketSocket) publish(w *watch) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.publishLocked(w)
}

// publishLocked makes w what packets are checked against, in the kernel and
// here. Here comes first: a port that is new must not be refused here when its
// first packet has passed the filter.
func (s *PacketSocket) publishLocked(w *watch) error {
	old := s.watch.Swap(w)
	if err := s.attachLocked(w.filter()); err != nil {
		s.watch.Store(old)
		return err
	}
	return nil
}

// attachLocked puts the filter in force. The kernel swaps filters between two
// packets. It also limits the memory they take (net.core.optmem_max); a filter
// that is too large for it is made coarser.
func (s *PacketSocket) attachLocked(f filter) error {
	for limit := maxPortRanges; ; limit /= 2 {
		program, err := bpf.Assemble(f.program(limit))
		if err != nil {
			return fmt.Errorf("assemble the kernel filter: %w", err)
		}
		if slices.Equal(program, s.attached) {
			return nil
		}
		err = s.attach(program)
		if err == nil {
			s.attached = program
			return nil
		}
		if !errors.Is(err, unix.ENOMEM) || limit == 1 {
			return fmt.Errorf("attach the kernel filter: %w", err)
		}
	}
}

func (s *PacketSocket) attach(program []bpf.RawInstruction) error {
	code := make([]unix.SockFilter, len(program))
	for i, p := range program {
		code[i] = unix.SockFilter{Code: p.Op, Jt: p.Jt, Jf: p.Jf, K: p.K}
	}
	return s.control(func(fd int) error {
		return unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER,
			&unix.SockFprog{Len: uint16(len(code)), Filter: &code[0]})
	})
}

// control calls fn with the descriptor, which stays open meanwhile.
func (s *PacketSocket) control(fn func(fd int) error) error {
	var err error
	if closed := s.conn.Control(func(fd uintptr) { err = fn(int(fd)) }); closed != nil {
		return closed
	}
	return err
}

// Sniff observes the probes that arrive at s until ctx ends, and then returns
// nil within milliseconds. It calls observe from one goroutine, in the order of
// arrival. It follows interfaces and addresses that come and go.
//
// A socket can be sniffed once.
func Sniff(ctx context.Context, s *PacketSocket, observe Observer) error {
	g, ctx := errgroup.WithContext(ctx)
	changed := make(chan struct{}, 1)
	g.Go(func() error { return s.read(ctx, observe) })
	g.Go(func() error { return s.noticeChanges(ctx, changed) })
	g.Go(func() error { return s.keepUp(ctx, changed) })
	return g.Wait()
}

// read observes what the ring holds, block by block.
func (s *PacketSocket) read(ctx context.Context, observe Observer) error {
	s.reading.Lock()
	defer s.reading.Unlock()
	if s.ring == nil {
		return fmt.Errorf("read packets: %w", os.ErrClosed)
	}
	stop := context.AfterFunc(ctx, func() { _ = s.file.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()

	r := sniffer{decoder: newDecoder(), observe: observe}
	ready := func(uintptr) bool { return s.ring.ready() }
	for ctx.Err() == nil {
		if err := s.conn.Read(ready); err != nil {
			if ctx.Err() != nil {
				break
			}
			return fmt.Errorf("read packets: %w", err)
		}
		counts := r.block(s.ring.block(), s.watch.Load())
		s.ring.release()
		s.count(&counts)
		runtime.Gosched() // with few cores, let the outputs have their turn under load
	}
	return nil
}

// resyncPause is the least time between two readings of the host's interfaces
// and addresses, so that many changes at a time cost one reading.
const resyncPause = 100 * time.Millisecond

// noticeChanges tells changed when the host's interfaces or addresses may have
// changed.
func (s *PacketSocket) noticeChanges(ctx context.Context, changed chan<- struct{}) error {
	var limit logLimit
	for ctx.Err() == nil {
		if err := s.host.wait(ctx); err != nil && ctx.Err() == nil {
			if limit.allow(time.Now()) {
				s.log.WithError(err).Warn("interface changes may go unnoticed for a moment")
			}
			pause(ctx, time.Second)
		}
		signal(changed)
	}
	return nil
}

// countersInterval is how often the kernel's counters are read at the least.
// They have 32 bits.
const countersInterval = time.Minute

// keepUp follows the host's changes.
func (s *PacketSocket) keepUp(ctx context.Context, changed chan struct{}) error {
	counters := time.NewTicker(countersInterval)
	defer counters.Stop()
	var limit logLimit
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-counters.C:
			s.Stats()
		case <-changed:
			if err := s.resync(); err != nil && ctx.Err() == nil {
				if limit.allow(time.Now()) {
					s.log.WithError(err).Warn("capture goes on with the interfaces and addresses known before")
				}
				signal(changed) // try again
			}
			pause(ctx, resyncPause)
		}
	}
}

// resync reads the host's interfaces and addresses again.
func (s *PacketSocket) resync() error {
	view, err := s.host.view()
	if err != nil {
		return err
	}
	before := s.watch.Load()
	if err := s.setView(view); err != nil {
		return err
	}
	s.logChanges(before.rule, before.view, view)
	return nil
}

// logChanges tells which wanted interfaces went and came. Those that were asked
// for by name matter to the administrator; others come and go with containers.
func (s *PacketSocket) logChanges(rule interfaceRule, before, after *hostView) {
	came, went := logrus.DebugLevel, logrus.DebugLevel
	if rule.names != nil {
		came, went = logrus.InfoLevel, logrus.WarnLevel
	}
	was, is := rule.wanted(before), rule.wanted(after)
	for _, name := range was {
		if !slices.Contains(is, name) {
			s.log.WithField("interface", name).Log(went, "interface is gone or down")
		}
	}
	for _, name := range is {
		if !slices.Contains(was, name) {
			s.log.WithField("interface", name).Log(came, "capture on interface begins")
		}
	}
}

// signal leaves a message unless there is one.
func signal(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// pause waits for d or the end of ctx.
func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// An interfaceRule says which interfaces are wanted.
type interfaceRule struct {
	names         []string // nil: by kind
	skipLoopbacks bool
}

func newInterfaceRule(interfaces []string) (interfaceRule, error) {
	switch {
	case len(interfaces) == 0 || slices.Equal(interfaces, []string{AllInterfaces}):
		return interfaceRule{}, nil
	case slices.Equal(interfaces, []string{AllButLoopback}):
		return interfaceRule{skipLoopbacks: true}, nil
	}
	for _, name := range interfaces {
		if name == AllInterfaces || name == AllButLoopback {
			return interfaceRule{}, fmt.Errorf("interfaces %q: %q stands alone, without names", interfaces, name)
		}
		if name == "" || len(name) >= unix.IFNAMSIZ {
			return interfaceRule{}, fmt.Errorf("interface %q: a name has 1 to %d bytes", name, unix.IFNAMSIZ-1)
		}
	}
	return interfaceRule{names: interfaces}, nil
}

// String returns the rule as it was asked for.
func (r interfaceRule) String() string {
	switch {
	case r.names != nil:
		return `"` + strings.Join(r.names, `", "`) + `"`
	case r.skipLoopbacks:
		return `"` + AllButLoopback + `"`
	}
	return `"` + AllInterfaces + `"`
}

func (r interfaceRule) wants(l link) bool {
	if r.names != nil {
		return slices.Contains(r.names, l.name)
	}
	return !l.member && !(r.skipLoopbacks && l.loopback)
}

// wanted returns the names of the wanted interfaces that are up.
func (r interfaceRule) wanted(v *hostView) []string {
	var names []string
	for _, l := range v.links {
		if l.up && r.wants(l) {
			names = append(names, l.name)
		}
	}
	return names
}

func (r interfaceRule) usable(v *hostView) bool { return len(r.wanted(v)) > 0 }

// missing returns the names asked for that no interface has.
func (r interfaceRule) missing(v *hostView) []string {
	var names []string
	for _, name := range r.names {
		there := false
		for _, l := range v.links {
			there = there || l.name == name
		}
		if !there {
			names = append(names, name)
		}
	}
	return names
}

// A watch is all that a packet is checked against. It is immutable.
type watch struct {
	rule     interfaceRule
	view     *hostView
	tcp, udp detector.PortSet
}

// filter returns the kernel's part of the checks.
func (w *watch) filter() filter {
	f := filter{tcp: w.tcp, udp: w.udp, skipLoopbacks: w.rule.skipLoopbacks}
	if w.rule.names != nil {
		f.only = []uint32{} // not nil: that would be all
	}
	for index, l := range w.view.links {
		switch {
		case w.rule.names != nil && w.rule.wants(l):
			f.only = append(f.only, uint32(index))
		case w.rule.names == nil && l.member:
			f.except = append(f.except, uint32(index))
		}
	}
	return f
}

// link returns the interface with an index, and whether it is wanted. An
// interface that has just appeared is not known yet; unless names are asked
// for, it is wanted.
func (w *watch) link(index int) (link, bool) {
	l, known := w.view.links[index]
	if !known {
		return l, w.rule.names == nil
	}
	return l, w.rule.wants(l)
}

func (w *watch) watches(p *detector.Probe) bool {
	if p.Proto == detector.TCP {
		return w.tcp.Contains(p.Target.Port())
	}
	return w.udp.Contains(p.Target.Port())
}

// A sniffer turns blocks into probes. Per packet it allocates nothing.
type sniffer struct {
	decoder *decoder
	observe Observer
	packet  packet // here, so that it is not allocated
}

// block observes the probes in a block and returns what became of its packets.
func (r *sniffer) block(block []byte, w *watch) packetCounts {
	var counts packetCounts
	var f frame
	frames := readBlock(block)
	for frames.next(&f) {
		r.frame(&f, w, &counts)
	}
	if frames.broken {
		counts.brokenBlocks++
	}
	return counts
}

func (r *sniffer) frame(f *frame, w *watch, counts *packetCounts) {
	l, wanted := w.link(f.index)
	if !wanted {
		counts.unwatched++
		return
	}
	r.packet = packet{
		at:        f.at,
		etherType: f.startsWith(),
		data:      f.data,
		length:    f.length,
		iface:     l.name,
		checksum:  f.checksum(),
	}
	probe, why := r.decoder.decode(&r.packet)
	switch {
	case why != notDropped:
		counts.undecoded[why]++
	case !isProbe(&probe):
		counts.notProbes++
	case !w.watches(&probe):
		counts.unwatched++
	case !w.view.isLocal(probe.Target.Addr(), l):
		counts.notLocal++
	default:
		counts.probes++
		withZones(&probe)
		r.observe(probe)
	}
}

// withZones marks link-local addresses with the interface that they mean
// something on, on both sides so that they stay comparable.
func withZones(p *detector.Probe) {
	if addr := p.Source.Addr(); addr.Is6() && addr.IsLinkLocalUnicast() {
		p.Source = netip.AddrPortFrom(addr.WithZone(p.Interface), p.Source.Port())
	}
	if addr := p.Target.Addr(); addr.Is6() && addr.IsLinkLocalUnicast() {
		p.Target = netip.AddrPortFrom(addr.WithZone(p.Interface), p.Target.Port())
	}
}
