package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
	"github.com/portsnare/portsnare/detector/capture/tproxy"
)

// A TrapConfig says what [Traps] listen on and answer.
type TrapConfig struct {
	TCP, UDP detector.PortSet // trap ports, on all addresses of the host

	// Banner is sent as it is, MaxBanner bytes at most, to whom the observer
	// grants it. Empty means that connections are closed at once.
	Banner []byte

	// AcceptFailed is told of connections that ended before they were accepted,
	// so that nobody knows whose they were: the port, or 0 if one listener
	// stands for many, and what accept returned (a [syscall.Errno]). It is
	// called from the observer's goroutine, ten times a second at most. It may
	// be nil.
	AcceptFailed func(port uint16, err error)

	Log *logrus.Entry // nil means silence
}

// maxAcceptReports bounds the reports a second of connections that vanished.
const maxAcceptReports = 10

// MaxBanner is the length of the longest banner in bytes. A connection that was
// just made takes so much without waiting for its peer.
const MaxBanner = 4096

// Traps are sockets that listen on trap ports, and the connections that they
// accepted. Their methods are safe for concurrent use.
//
// There is one socket for each port and protocol, for IPv4 and IPv6 together,
// or one for all ports of each protocol and family; docs/adr/0005 says why. One
// epoll instance watches all. No peer has a goroutine or a buffer of its own, so
// that nothing grows with their number.
type Traps struct {
	log      *logrus.Entry
	banner   []byte
	tcp, udp detector.PortSet // held
	refused  []RefusedPort
	rules    *tproxy.Rules // that redirect ports to sockets; nil if each has its own

	acceptFailed func(port uint16, err error) // never nil

	waker *os.File // an eventfd; what is written to it ends a wait

	closed atomic.Bool
	stats  trapCounters

	serving sync.Mutex // held by whoever uses the fields below
	epoll   int
	sockets []int
	sender  sender         // of banners, from redirected ports
	lost    map[int]uint32 // datagrams by socket, where there are any; the kernel's counters
}

// TrapStats are the counters of [Traps] since they were opened.
type TrapStats struct {
	Accepted       uint64 // connections
	Datagrams      uint64 // to one of our addresses
	Lost           uint64 // datagrams that found a buffer full, as far as a later one to the port told
	SentToMany     uint64 // datagrams to broadcast and multicast addresses, which are no probes
	CutShort       uint64 // connections with a banner that ended early because newer ones took their place
	BannerTimeouts uint64 // connections that the peer kept open after the banner until we gave up
	BannersHeld    uint64 // banners not sent in answer to a datagram, so as not to serve reflection and loops
	AcceptFailures uint64 // connections that ended or could not be taken before we knew their source
}

type trapCounters struct {
	accepted, datagrams, lost, sentToMany, cutShort, bannerTimeouts, bannersHeld, acceptFailures atomic.Uint64
}

// A RefusedPort is a trap port that the kernel would not give.
type RefusedPort struct {
	Proto detector.Proto
	Port  uint16
	Err   error // wraps a [syscall.Errno]: EADDRINUSE where a service has it
}

// A NoTrapsError tells that not one of the trap ports could be had.
type NoTrapsError struct {
	Refused []RefusedPort // all of them, as from [Traps.Refused]
}

// Error returns the text for an administrator.
func (*NoTrapsError) Error() string {
	return "services have all the trap ports; choose others"
}

// maxTrapSockets is how many trap ports, those for TCP and for UDP together, are
// held by a socket each. It is enough for the lists that administrators write.
const maxTrapSockets = 4096

// OpenTraps takes the trap ports in the network namespace of the calling
// thread. Connections and datagrams are collected from now on, so [Trap] should
// follow soon. Nothing after it needs a privilege.
//
// Up to maxTrapSockets ports have a socket each, for which OpenTraps raises the
// process's soft limit on descriptors. Ports below 1024 need
// CAP_NET_BIND_SERVICE. A port that a service has is left to it, and told by
// [Traps.Refused]; if nothing is left, the error wraps a [*NoTrapsError].
//
// More ports, or more than the hard limit allows, are redirected to a few
// sockets, which needs CAP_NET_ADMIN, CAP_NET_RAW and Linux 5.12. They yield to every socket
// that has a port, then or later, and leave alone what comes over loopback.
// Where that is not possible, they have a socket each as far as the hard limit
// allows.
func OpenTraps(cfg TrapConfig) (_ *Traps, err error) {
	switch {
	case cfg.TCP.Len()+cfg.UDP.Len() == 0:
		return nil, errors.New("open traps: no trap ports")
	case len(cfg.Banner) > MaxBanner:
		return nil, fmt.Errorf("open traps: banner of %d bytes: %d are the most", len(cfg.Banner), MaxBanner)
	}
	if cfg.Log == nil {
		cfg.Log = silentLog()
	}
	if cfg.AcceptFailed == nil {
		cfg.AcceptFailed = func(uint16, error) {}
	}
	t := &Traps{log: cfg.Log, banner: cfg.Banner, acceptFailed: cfg.AcceptFailed, epoll: -1, sender: noSender, lost: make(map[int]uint32)}
	defer func() {
		if err != nil {
			err = errors.Join(err, t.Close())
		}
	}()
	if err := t.openPoller(); err != nil {
		return nil, fmt.Errorf("open traps: %w", err)
	}
	if err := t.take(cfg.TCP, cfg.UDP); err != nil {
		return nil, fmt.Errorf("open traps: %w", err)
	}
	return t, nil
}

// take takes the trap ports in one way or the other.
func (t *Traps) take(tcp, udp detector.PortSet) error {
	ports := tcp.Len() + udp.Len()
	if ports <= maxTrapSockets && raiseDescriptorLimit(ports+spareDescriptors) == nil {
		return t.holdEach(tcp, udp)
	}
	redirecting := t.redirectAll(tcp, udp)
	if redirecting == nil {
		return raiseDescriptorLimit(spareDescriptors)
	}
	redirecting = fmt.Errorf("redirect %d trap ports to one listener: %w", ports, redirecting)
	if err := raiseDescriptorLimit(ports + spareDescriptors); err != nil {
		return fmt.Errorf("%w; instead, open a socket for each: %w", redirecting, err)
	}
	t.log.WithError(redirecting).Warn("trap ports have a socket each, which takes memory and keeps services from them")
	t.closeSockets()
	return t.holdEach(tcp, udp)
}

// holdEach opens a socket for each trap port.
func (t *Traps) holdEach(tcp, udp detector.PortSet) (err error) {
	if t.tcp, err = t.hold(detector.TCP, tcp); err != nil {
		return err
	}
	if t.udp, err = t.hold(detector.UDP, udp); err != nil {
		return err
	}
	if len(t.sockets) == 0 {
		return &NoTrapsError{Refused: t.refused}
	}
	t.warnOfEphemeralPorts()
	return nil
}

func (t *Traps) openPoller() (err error) {
	if t.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("create an epoll instance: %w", err)
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return fmt.Errorf("create an eventfd: %w", err)
	}
	t.waker = os.NewFile(uintptr(event), "eventfd")
	return t.poll(event, trapWake, 0)
}

// hold listens on ports and returns those that it got.
func (t *Traps) hold(proto detector.Proto, ports detector.PortSet) (detector.PortSet, error) {
	var held []detector.PortRange
	for _, r := range ports.Ranges() {
		for port := int(r.First); port <= int(r.Last); port++ {
			one := detector.PortRange{First: uint16(port), Last: uint16(port)}
			fd, err := listenTrap(proto, one.First)
			if errors.Is(err, unix.EADDRINUSE) {
				t.refused = append(t.refused, RefusedPort{Proto: proto, Port: one.First, Err: err})
				continue
			}
			if err != nil {
				return detector.PortSet{}, fmt.Errorf("%v port %d: %w", proto, port, err)
			}
			t.sockets = append(t.sockets, fd)
			if err := t.poll(fd, kindOf(proto), one.First); err != nil {
				return detector.PortSet{}, fmt.Errorf("%v port %d: %w", proto, port, err)
			}
			held = append(held, one)
		}
	}
	return detector.NewPortSet(held...), nil
}

// Ports returns the trap ports that are held. Of those that are redirected,
// some may have sockets of their own at times, and are no traps then.
func (t *Traps) Ports() (tcp, udp detector.PortSet) { return t.tcp, t.udp }

// Refused returns the trap ports that services had at the start, TCP before UDP
// and lowest first. Of redirected ports, none is refused. OpenTraps logs nothing
// of them. The caller must not change them.
func (t *Traps) Refused() []RefusedPort { return t.refused }

// Stats returns the counters.
func (t *Traps) Stats() TrapStats {
	return TrapStats{
		Accepted:       t.stats.accepted.Load(),
		Datagrams:      t.stats.datagrams.Load(),
		Lost:           t.stats.lost.Load(),
		SentToMany:     t.stats.sentToMany.Load(),
		CutShort:       t.stats.cutShort.Load(),
		BannerTimeouts: t.stats.bannerTimeouts.Load(),
		BannersHeld:    t.stats.bannersHeld.Load(),
		AcceptFailures: t.stats.acceptFailures.Load(),
	}
}

// Close gives the ports back. A [Trap] that still runs ends with an error that
// wraps [os.ErrClosed]. Stats can still be called.
func (t *Traps) Close() error {
	if t.closed.Swap(true) {
		return nil
	}
	t.wake()
	t.serving.Lock()
	defer t.serving.Unlock()
	var errs []error
	if t.rules != nil { // first, so that nothing is handed to a closed socket
		errs = append(errs, t.rules.Close())
	}
	t.closeSockets()
	if t.epoll >= 0 {
		_ = unix.Close(t.epoll)
	}
	if t.waker != nil {
		errs = append(errs, t.waker.Close())
	}
	return errors.Join(errs...)
}

func (t *Traps) closeSockets() {
	for _, fd := range t.sockets {
		_ = unix.Close(fd) // nothing was written that could be lost
	}
	t.sockets = nil
	t.sender.close()
	t.sender = noSender
}

// wake ends the wait of a [Trap] that runs, now or when it next waits.
func (t *Traps) wake() {
	if t.waker != nil {
		// It can only fail when full, and then it has its effect, or when closed.
		_, _ = t.waker.Write(binary.NativeEndian.AppendUint64(nil, 1))
	}
}

// What a descriptor in the epoll instance is.
type trapKind uint16

const (
	trapWake     trapKind = iota
	trapListener          // with the port as number, or anyPort
	trapReceiver          // with the port as number, or anyPort
	trapLingerer          // with its place in lingerers as number
)

// anyPort is the number of a socket that stands for many.
const anyPort = 0

func kindOf(proto detector.Proto) trapKind {
	if proto == detector.TCP {
		return trapListener
	}
	return trapReceiver
}

// poll has the epoll instance tell when fd can be read.
func (t *Traps) poll(fd int, kind trapKind, number uint16) error {
	err := unix.EpollCtl(t.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{
		Events: unix.EPOLLIN | unix.EPOLLRDHUP, Fd: int32(fd), Pad: int32(kind)<<16 | int32(number),
	})
	if err != nil {
		return fmt.Errorf("add to the epoll instance: %w", err)
	}
	return nil
}

// Trap observes the connections and datagrams that arrive at t until ctx ends,
// and returns nil. It calls observe from one goroutine. If the decision grants
// it, a source gets the banner.
func Trap(ctx context.Context, t *Traps, observe Observer) error {
	t.serving.Lock()
	defer t.serving.Unlock()
	stop := context.AfterFunc(ctx, t.wake)
	defer stop()
	s := newTrapServer(t, observe)
	defer s.lingerers.hangUp()
	for ctx.Err() == nil {
		if t.closed.Load() {
			return fmt.Errorf("serve traps: %w", os.ErrClosed)
		}
		if err := s.serve(ctx, s.lingerers.patience(time.Now())); err != nil {
			return fmt.Errorf("serve traps: %w", err)
		}
	}
	return s.serve(ctx, 0) // what arrived before the end
}
