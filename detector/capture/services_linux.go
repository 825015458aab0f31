package capture

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/mdlayher/netlink"
	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

// Services knows which ports local services hold, from the kernel's socket
// tables (sock_diag), so that their clients are not taken for probes. It is
// safe for concurrent use.
//
// It reads listening TCP sockets and all UDP sockets with a port, never
// established connections. A snapshot serves for a short while, so that a flood
// costs no more than a trickle; it takes no privilege.
//
// If the kernel's tables cannot be read, the last snapshot stays in force:
// services rarely change, so it is nearly always right, whereas any other
// answer would report all clients or hide all probes.
//
// A port that the firewall redirects to a service elsewhere has no socket here
// and counts as free.
type Services struct {
	log      *logrus.Entry
	sockets  *dumper
	table    atomic.Pointer[serviceTable] // never nil
	stale    atomic.Bool                  // a timer says that table has served its time
	failures atomic.Uint64

	warned logLimit
	memory time.Duration // how long a service that has gone counts as there

	mu    sync.Mutex // held while a snapshot is read
	timer *time.Timer
}

// A packet is looked at a moment after the service has received it. By then a
// service for a single request may have gone. It counts as there for
// serviceMemory, if it was there for lookInterval.
const (
	serviceMemory = 2 * time.Second
	lookInterval  = time.Second
)

// How long a snapshot serves. Reading must cost at most a hundredth of a CPU,
// but no snapshot serves for more than 100 ms, except where there are so many
// sockets that this would take a tenth.
const (
	maxServiceAge  = 100 * time.Millisecond
	minServiceAge  = 5 * time.Millisecond
	usualCostRatio = 100
	leastCostRatio = 10
)

func serviceAge(cost time.Duration) time.Duration {
	return max(min(cost*usualCostRatio, maxServiceAge), cost*leastCostRatio, minServiceAge)
}

// NewServices reads the socket tables for the first time, in the network
// namespace of the calling thread, in which the process must stay as for
// [Open]. log tells of failures; nil means silence.
func NewServices(log *logrus.Entry) (*Services, error) {
	if log == nil {
		log = silentLog()
	}
	sockets, err := newDumper(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	s := &Services{log: log, sockets: sockets, memory: serviceMemory}
	table, err := readServices(sockets)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("read the socket tables: %w", err), sockets.close())
	}
	s.serve(table)
	return s, nil
}

// Run takes a look every second until ctx ends, so that services are known that
// come and go while nobody asks.
func (s *Services) Run(ctx context.Context) error {
	tick := time.NewTicker(lookInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			s.current()
		case <-ctx.Done():
			return nil
		}
	}
}

// serve puts a snapshot in force for as long as it may serve. The timer spares
// each lookup a reading of the clock.
func (s *Services) serve(t *serviceTable) {
	s.table.Store(t)
	s.stale.Store(false)
	if s.timer == nil {
		s.timer = time.AfterFunc(t.age, func() { s.stale.Store(true) })
		return
	}
	s.timer.Reset(t.age)
}

// Close frees the netlink socket. The last snapshot stays in force.
func (s *Services) Close() error { return s.sockets.close() }

// Failures returns how often the socket tables could not be read.
func (s *Services) Failures() uint64 { return s.failures.Load() }

// InUse reports whether a local service holds target: a socket bound to its
// port, and to its address or to all. It does for [detector.Policy] what
// PortSentry's service check does, without touching the port.
//
// A socket on all IPv6 addresses holds IPv4 ones too unless it is IPv6-only.
// A UDP socket that is connected to one peer holds its port for all. A socket
// bound to an interface counts on every interface.
func (s *Services) InUse(proto detector.Proto, target netip.AddrPort) bool {
	return s.current().holds(proto, target)
}

// PortInUse reports whether a local socket holds port on any address, so that
// PortSentry 1.2 would not get it for all addresses.
func (s *Services) PortInUse(proto detector.Proto, port uint16) bool {
	return s.current().ports[portKey(proto, port)] != nil
}

// current returns a snapshot that still serves. Whoever finds it too old reads
// the next one; others wait for that.
func (s *Services) current() *serviceTable {
	if !s.stale.Load() {
		return s.table.Load()
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	old := s.table.Load()
	if !s.stale.Load() {
		return old
	}
	fresh, err := readServices(s.sockets)
	switch {
	case errors.Is(err, os.ErrClosed):
		return old
	case err != nil:
		s.failures.Add(1)
		if s.warned.allow(time.Now()) {
			s.log.WithError(err).Warn("socket tables cannot be read; services are those known before")
		}
		fresh = &serviceTable{ports: old.ports, age: maxServiceAge}
	}
	fresh.remember(old, time.Now(), s.memory)
	s.serve(fresh)
	return fresh
}

// A serviceTable is one snapshot. It is immutable once stored.
type serviceTable struct {
	ports map[uint32]*holders // by portKey
	gone  map[uint32]departed // by portKey
	age   time.Duration       // that it may reach
}

// portKey is a number, because maps are fastest with these.
func portKey(proto detector.Proto, port uint16) uint32 { return uint32(proto)<<16 | uint32(port) }

// holders are the addresses that sockets on one port are bound to.
type holders struct {
	all4, all6 bool
	addrs      map[netip.Addr]struct{}
}

// departed are holders of a port that were there a short while ago.
type departed struct {
	*holders
	until time.Time // then they are forgotten
}

func (t *serviceTable) holds(proto detector.Proto, target netip.AddrPort) bool {
	key, addr := portKey(proto, target.Port()), target.Addr().Unmap().WithZone("")
	return t.ports[key].hold(addr) || t.gone[key].hold(addr)
}

func (h *holders) hold(addr netip.Addr) bool {
	if h == nil {
		return false
	}
	if addr.Is4() && h.all4 || addr.Is6() && h.all6 {
		return true
	}
	_, bound := h.addrs[addr]
	return bound
}

// cover reports whether h hold all addresses that others hold.
func (h *holders) cover(others *holders) bool {
	if h == nil || others.all4 && !h.all4 || others.all6 && !h.all6 {
		return false
	}
	for addr := range others.addrs {
		if !h.hold(addr) {
			return false
		}
	}
	return true
}

// remember takes over from the snapshot before which holders have gone.
func (t *serviceTable) remember(before *serviceTable, now time.Time, memory time.Duration) {
	t.gone = make(map[uint32]departed)
	for key, d := range before.gone {
		if now.Before(d.until) {
			t.gone[key] = d
		}
	}
	for key, h := range before.ports {
		if !t.ports[key].cover(h) {
			t.gone[key] = departed{h, now.Add(memory)}
		}
	}
}

// The dumps that make up a snapshot. In each, the kernel leaves out all
// sockets in other states.
var serviceDumps = []struct {
	proto  detector.Proto
	family uint8
	states uint32
}{
	{detector.TCP, unix.AF_INET, 1 << unix.BPF_TCP_LISTEN},
	{detector.TCP, unix.AF_INET6, 1 << unix.BPF_TCP_LISTEN},
	// An unconnected UDP socket is in state CLOSE, a connected one ESTABLISHED.
	{detector.UDP, unix.AF_INET, 1<<unix.BPF_TCP_CLOSE | 1<<unix.BPF_TCP_ESTABLISHED},
	{detector.UDP, unix.AF_INET6, 1<<unix.BPF_TCP_CLOSE | 1<<unix.BPF_TCP_ESTABLISHED},
}

// Sizes and offsets in struct inet_diag_req_v2 and struct inet_diag_msg.
const (
	diagRequestSize     = 56
	diagRequestStatesAt = 4

	diagAnswerSize   = 72
	diagAnswerPortAt = 4
	diagAnswerAddrAt = 8
)

// diagV6Only is the attribute that says whether a socket is IPv6-only. The
// kernel adds it for listening and unconnected IPv6 sockets.
const diagV6Only = 11

func readServices(sockets *dumper) (*serviceTable, error) {
	began := time.Now()
	t := &serviceTable{ports: make(map[uint32]*holders)}
	for _, d := range serviceDumps {
		request := make([]byte, diagRequestSize)
		request[0], request[1] = d.family, uint8(d.proto)
		binary.NativeEndian.PutUint32(request[diagRequestStatesAt:], d.states)
		answers, err := sockets.dump(unix.SOCK_DIAG_BY_FAMILY, request)
		if errors.Is(err, unix.ENOENT) {
			return nil, fmt.Errorf("%v: %w; the kernel module %s_diag is needed", d.proto, err, strings.ToLower(d.proto.String()))
		}
		if err != nil {
			return nil, fmt.Errorf("%v: %w", d.proto, err)
		}
		for _, m := range answers {
			if err := t.add(d.proto, m.Data); err != nil {
				return nil, fmt.Errorf("%v: %w", d.proto, err)
			}
		}
	}
	t.age = serviceAge(time.Since(began))
	return t, nil
}

// add takes one struct inet_diag_msg with its attributes.
func (t *serviceTable) add(proto detector.Proto, answer []byte) error {
	if len(answer) < diagAnswerSize {
		return fmt.Errorf("an answer of %d bytes, shorter than its header", len(answer))
	}
	port := binary.BigEndian.Uint16(answer[diagAnswerPortAt:])
	if port == 0 {
		return nil
	}
	addr := netip.AddrFrom4([4]byte(answer[diagAnswerAddrAt:]))
	if answer[0] == unix.AF_INET6 {
		addr = netip.AddrFrom16([16]byte(answer[diagAnswerAddrAt:])).Unmap()
	}
	key := portKey(proto, port)
	h := t.ports[key]
	if h == nil {
		h = new(holders)
		t.ports[key] = h
	}
	switch {
	case !addr.IsUnspecified():
		if h.addrs == nil {
			h.addrs = make(map[netip.Addr]struct{})
		}
		h.addrs[addr] = struct{}{}
	case addr.Is4():
		h.all4 = true
	default:
		v6Only, err := isV6Only(answer[diagAnswerSize:])
		if err != nil {
			return err
		}
		h.all6 = true
		h.all4 = h.all4 || !v6Only
	}
	return nil
}

func isV6Only(attributes []byte) (bool, error) {
	d, err := netlink.NewAttributeDecoder(attributes)
	if err != nil {
		return false, err
	}
	only := false
	for d.Next() {
		if d.Type() == diagV6Only {
			only = d.Uint8() != 0
		}
	}
	return only, d.Err()
}
