package capture

import (
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

// A SniffConfig says what a [PacketSocket] captures.
type SniffConfig struct {
	// Names are the interfaces to capture. Empty means all but those that
	// belong to a bridge, bond or team, because their frames come again from it.
	Names []string

	SkipLoopbacks bool // leaves out loopback interfaces, also if named

	// TCP and UDP are the trap ports. Where the kernel cannot tell by them
	// exactly, probes to other ports are observed too.
	TCP, UDP detector.PortSet

	// Broadcasts makes probes also of datagrams to broadcast addresses, and to
	// the multicast groups that every host is in.
	Broadcasts bool

	Log *logrus.Entry // nil means silence

	ringSize int           // zero means defaultRingSize; only tests need another
	handOver time.Duration // zero means defaultHandOver; only tests need another
}

const (
	// defaultRingSize is the memory shared with the kernel, in bytes; packets
	// that find it full are lost and counted.
	defaultRingSize = 16 << 20

	// defaultHandOver is how long the kernel may wait for more packets before
	// it hands over what it has; whole milliseconds.
	defaultHandOver = time.Millisecond
)

// A PacketSocket receives the packets of all wanted interfaces that may be
// probes. Its methods are safe for concurrent use.
type PacketSocket struct {
	log  *logrus.Entry
	file *os.File // the socket, for the runtime's poller
	conn syscall.RawConn
	host *hostWatcher

	closed atomic.Bool

	reading sync.Mutex // held by whoever uses ring
	ring    *ring

	watch atomic.Pointer[watch] // replaced under mu only

	mu              sync.Mutex
	attached        []bpf.RawInstruction // the kernel's filter
	ignoresOutgoing bool                 // the kernel shows no packet of this host
	stats           Stats
	settled         bool // stats are final
}

// Open opens a packet socket in the network namespace of the calling thread.
// It needs CAP_NET_RAW; nothing after it does. Packets are collected from now
// on, so [Sniff] should follow soon. The process must stay in one network
// namespace, because any thread of it may open a netlink socket anew.
//
// It is an error if none of the wanted interfaces is up. Interfaces that
// appear later are captured too.
func Open(cfg SniffConfig) (_ *PacketSocket, err error) {
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
	rule := interfaceRule{names: cfg.Names, skipLoopbacks: cfg.SkipLoopbacks}
	if len(rule.wanted(view)) == 0 {
		return nil, fmt.Errorf("no usable interface: asked for %v; this host has %v", rule, view)
	}
	for _, name := range rule.missing(view) {
		s.log.WithField("interface", name).Warn("interface is not there; capture on it begins when it appears")
	}
	if err := s.open(cfg, &watch{rule: rule, view: view, tcp: cfg.TCP, udp: cfg.UDP, broadcasts: cfg.Broadcasts}); err != nil {
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
	if err := s.publish(w); err != nil {
		return err
	}
	size, handOver := cmp.Or(cfg.ringSize, defaultRingSize), cmp.Or(cfg.handOver, defaultHandOver)
	if s.ring, err = openRing(fd, size, handOver); err != nil {
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
// error that wraps [os.ErrClosed]. Stats can still be called.
func (s *PacketSocket) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	if s.file == nil { // never opened
		return s.host.close()
	}
	_ = s.file.SetReadDeadline(time.Unix(1, 0)) // wakes the reader
	s.reading.Lock()
	defer s.reading.Unlock()
	errs := []error{s.host.close()}
	if s.ring != nil {
		s.settle()
		errs = append(errs, s.ring.close())
		s.ring = nil
	}
	return errors.Join(append(errs, s.file.Close())...)
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
// here, or leaves both as they were.
func (s *PacketSocket) publishLocked(w *watch) error {
	if err := s.attachLocked(w.filter()); err != nil {
		return err
	}
	if err := s.ignoreOutgoingLocked(!w.seesRequests()); err != nil {
		return err
	}
	s.watch.Store(w)
	return nil
}

// ignoreOutgoingLocked spares the kernel a copy of each outgoing packet, or not.
func (s *PacketSocket) ignoreOutgoingLocked(ignore bool) error {
	if ignore == s.ignoresOutgoing {
		return nil
	}
	value := 0
	if ignore {
		value = 1
	}
	err := s.control(func(fd int) error {
		return unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, value)
	})
	if err != nil {
		return fmt.Errorf("ignore outgoing packets: %w; Linux 4.20 or later is needed", err)
	}
	s.ignoresOutgoing = ignore
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
