package guard

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"time"

	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// defaultSSHPort is taken if neither the administrator nor the kernel tells.
const defaultSSHPort = 22

// portsInterval is how often the ports of SSH servers are looked for.
const portsInterval = 30 * time.Second

// sessionTables find the peers of SSH sessions in the kernel's socket tables
// (sock_diag), which takes no privilege.
type sessionTables struct {
	sockets *dumper
	memory  sessionMemory

	ports     []uint16  // where SSH sessions come in, sorted
	config    *Config   // that ports follow from,
	servers   []uint16  // and the ports where SSH servers listen
	portsNext time.Time // when to look for these again
}

// openSessionTables opens the socket tables of this thread's network namespace.
func openSessionTables() (*sessionTables, error) {
	sockets, err := newDumper(unix.NETLINK_SOCK_DIAG)
	if err != nil {
		return nil, err
	}
	return &sessionTables{sockets: sockets, memory: newSessionMemory()}, nil
}

func (s *sessionTables) close() error { return s.sockets.close() }

// findPorts brings ports up to date when it is time to, and reports whether
// they have changed. With an error they are as good as can be.
func (s *sessionTables) findPorts(config *Config, now time.Time) (changed bool, err error) {
	if config == s.config && now.Before(s.portsNext) {
		return false, nil
	}
	s.config, s.portsNext = config, now.Add(portsInterval)
	servers, err := s.serverPorts()
	if err == nil {
		s.servers = servers
	}
	ports := slices.Clone(config.SSHPorts)
	if len(ports)+len(s.servers) == 0 {
		ports = append(ports, defaultSSHPort)
	}
	// Where a server listens no trap does, whatever was asked for.
	ports = append(slices.DeleteFunc(ports, config.Traps.Contains), s.servers...)
	slices.Sort(ports)
	ports = slices.Compact(ports)
	changed = !slices.Equal(ports, s.ports)
	s.ports = ports
	return changed, err
}

// read returns the peers of the sessions that are there now or were lately.
// With an error it returns those known before.
func (s *sessionTables) read(now time.Time) ([]Entry, error) {
	next := s.memory.begin()
	for _, port := range s.ports {
		err := s.each(1<<unix.BPF_TCP_ESTABLISHED, port, func(socket tcpSocket) { next.add(socket, now) })
		if err != nil {
			return s.memory.entries(), err
		}
	}
	return s.memory.end(next, now)
}

// A tcpSocket is what the kernel's tables say of a TCP socket.
type tcpSocket struct {
	cookie uint64         // tells the socket from all others since boot
	local  netip.AddrPort // that it is bound to
	peer   netip.Addr
	uid    uint32 // of whoever opened it
	inode  uint32
}

// Sizes and offsets in struct inet_diag_req_v2 and struct inet_diag_msg.
const (
	diagRequestSize     = 56
	diagRequestStatesAt = 4
	diagRequestPortAt   = 8

	diagAnswerSize     = 72
	diagAnswerPortAt   = 4
	diagAnswerLocalAt  = 8
	diagAnswerPeerAt   = 24
	diagAnswerCookieAt = 44
	diagAnswerUIDAt    = 64
	diagAnswerInodeAt  = 68
)

// each calls use with each TCP socket in one of states, if port is not 0 then
// of those on that port. The kernel leaves out all others.
func (s *sessionTables) each(states uint32, port uint16, use func(tcpSocket)) error {
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		request := make([]byte, diagRequestSize)
		request[0], request[1] = family, unix.IPPROTO_TCP
		binary.NativeEndian.PutUint32(request[diagRequestStatesAt:], states)
		binary.BigEndian.PutUint16(request[diagRequestPortAt:], port)
		err := s.sockets.dump(unix.SOCK_DIAG_BY_FAMILY, request, diagAnswerSize,
			func(answer []byte, _ *netlink.AttributeDecoder) error {
				use(decodeSocket(answer))
				return nil
			})
		if errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("list TCP sockets: %w; the kernel module tcp_diag is needed", err)
		}
		if err != nil {
			return fmt.Errorf("list TCP sockets: %w", err)
		}
	}
	return nil
}

// decodeSocket takes one struct inet_diag_msg.
func decodeSocket(answer []byte) tcpSocket {
	addr := func(at int) netip.Addr {
		if answer[0] == unix.AF_INET6 {
			return netip.AddrFrom16([16]byte(answer[at:])).Unmap()
		}
		return netip.AddrFrom4([4]byte(answer[at:]))
	}
	return tcpSocket{
		cookie: binary.NativeEndian.Uint64(answer[diagAnswerCookieAt:]),
		local:  netip.AddrPortFrom(addr(diagAnswerLocalAt), binary.BigEndian.Uint16(answer[diagAnswerPortAt:])),
		peer:   addr(diagAnswerPeerAt),
		uid:    binary.NativeEndian.Uint32(answer[diagAnswerUIDAt:]),
		inode:  binary.NativeEndian.Uint32(answer[diagAnswerInodeAt:]),
	}
}
