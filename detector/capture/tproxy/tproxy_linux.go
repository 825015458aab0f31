package tproxy

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"

	"github.com/portsnare/portsnare/detector"
)

// The rules, in the words of nft(8):
//
//	table inet portsnare_traps_tcp_PORT {
//		flags owner
//		set tcp_ports { type inet_service; flags interval; }
//		set udp_ports { type inet_service; flags interval; }
//		set sent { type inet_service; flags dynamic,timeout; timeout 30s; }
//		chain take {
//			type filter hook prerouting priority 300;
//			iiftype loopback accept
//			fib daddr type != local accept
//			socket transparent 0 accept
//			socket wildcard <= 1 accept
//			udp dport @sent accept
//			meta nfproto ipv4 tcp dport @tcp_ports tproxy ip to 127.0.0.1:PORT
//			(and so on for the other three)
//		}
//		chain remember {
//			type filter hook postrouting priority 300;
//			meta priority 1 accept
//			fib saddr type local udp sport @udp_ports update @sent { udp sport }
//		}
//	}
//
// The table belongs to our netlink socket: the kernel removes it with that,
// however the process ends, and nobody else can change it or flush it away. Its
// name tells tables of several processes apart. If two take the same port, the
// first one has it, because the second finds that the packet has a socket.
//
// Both chains come last at their hooks, so after what translates addresses.
//
// Two rules spare what has a socket, at the moment when a packet comes: the
// kernel looks for one as it will when it delivers. The first takes in whatever
// is not transparent, as ours are. The second adds all full sockets, and so
// leaves a closed connection of ours that is in TIME_WAIT to tproxy, which lets
// the same peer connect again from the same port.
//
// Set sent has the ports that this host sent datagrams from a moment ago,
// itself or for hosts whose addresses it translates. An answer that comes when
// nobody waits for it any longer is no probe.

// answerTime is how long after a datagram an answer to it may come. It is
// conntrack's (nf_conntrack_udp_timeout).
const answerTime = 30 * time.Second

// Quiet is the priority (SO_PRIORITY) of datagrams whose answers are to be
// redirected like everything else. It is the kernel's lowest, TC_PRIO_FILLER.
const Quiet = 1

// A Listener is a socket that stands for many ports. It has the option
// IP_TRANSPARENT or IPV6_TRANSPARENT and is bound to Addr, which serves to find
// it and need not be one that anybody can reach.
type Listener struct {
	Proto detector.Proto
	Addr  netip.AddrPort
}

// Rules are in force until they are closed or the process ends.
type Rules struct{ conn *nftables.Conn }

// Close ends the redirection. What is under way stays with the sockets that
// have it.
func (r *Rules) Close() error { return r.conn.CloseLasting() }

// Redirect hands to listeners what arrives from other hosts for a port that no
// other socket has. It needs CAP_NET_ADMIN and Linux 5.12, acts on the network
// namespace of the calling thread, and needs a listener at least. A TCP
// connection has its original target as its local address; that of a datagram
// is told by IP_RECVORIGDSTADDR or IPV6_RECVORIGDSTADDR.
func Redirect(tcp, udp detector.PortSet, listeners []Listener) (*Rules, error) {
	first := listeners[0]
	name := fmt.Sprintf("portsnare_traps_%s_%d", strings.ToLower(first.Proto.String()), first.Addr.Port())
	conn, err := redirect(name, tcp, udp, listeners)
	if err != nil {
		return nil, fmt.Errorf("create nftables table %s: %w", name, firstErrno(err))
	}
	return &Rules{conn}, nil
}

// firstErrno reduces what the kernel says of a batch to its first complaint;
// the others follow from it.
func firstErrno(err error) error {
	if errno, ok := errors.AsType[syscall.Errno](err); ok {
		return errno
	}
	return err
}

// redirect returns the connection whose end is the end of the rules.
func redirect(name string, tcp, udp detector.PortSet, listeners []Listener) (_ *nftables.Conn, err error) {
	conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(c *netlink.Conn) error {
		return createOwnedTable(c, name)
	}))
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			_ = conn.CloseLasting()
		}
	}()
	table := &nftables.Table{Name: name, Family: nftables.TableFamilyINet}
	// With numbers of our own, because the library counts without a lock.
	r := ruleset{
		conn:  conn,
		table: table,
		tcp:   &nftables.Set{Table: table, ID: 1, Name: "tcp_ports", KeyType: nftables.TypeInetService, Interval: true},
		udp:   &nftables.Set{Table: table, ID: 2, Name: "udp_ports", KeyType: nftables.TypeInetService, Interval: true},
		sent: &nftables.Set{
			Table: table, ID: 3, Name: "sent", KeyType: nftables.TypeInetService,
			Dynamic: true, HasTimeout: true, Timeout: answerTime, Size: 1 << 16,
		},
	}
	if err := addPorts(conn, r.tcp, tcp); err != nil {
		return nil, err
	}
	if err := addPorts(conn, r.udp, udp); err != nil {
		return nil, err
	}
	if err := conn.AddSet(r.sent, nil); err != nil {
		return nil, err
	}
	r.take(listeners)
	r.remember()
	return conn, conn.Flush()
}

// tableOwned is NFT_TABLE_F_OWNER.
const tableOwned = 2

// createOwnedTable creates the table as one that belongs to c. The library has
// no way to set its flags.
func createOwnedTable(c *netlink.Conn, name string) (err error) {
	defer func() {
		if err != nil {
			_ = c.Close()
		}
	}()
	attributes := netlink.NewAttributeEncoder()
	attributes.String(unix.NFTA_TABLE_NAME, name)
	attributes.ByteOrder = binary.BigEndian
	attributes.Uint32(unix.NFTA_TABLE_FLAGS, tableOwned)
	table, err := attributes.Encode()
	if err != nil {
		return err
	}
	const subsystem = unix.NFNL_SUBSYS_NFTABLES
	if _, err := c.SendMessages([]netlink.Message{
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_BEGIN, Flags: netlink.Request}, Data: []byte{0, 0, 0, subsystem}},
		{
			Header: netlink.Header{
				Type:  subsystem<<8 | unix.NFT_MSG_NEWTABLE,
				Flags: netlink.Request | netlink.Acknowledge | netlink.Create | netlink.Excl,
			},
			Data: append([]byte{unix.NFPROTO_INET, 0, 0, 0}, table...),
		},
		{Header: netlink.Header{Type: unix.NFNL_MSG_BATCH_END, Flags: netlink.Request}, Data: []byte{0, 0, 0, subsystem}},
	}); err != nil {
		return err
	}
	_, err = c.Receive()
	return err
}

// elementsAtOnce is how many elements of a set go into one message, which must
// stay below 64 KiB.
const elementsAtOnce = 1000

// addPorts creates a set and fills it.
func addPorts(conn *nftables.Conn, set *nftables.Set, ports detector.PortSet) error {
	if err := conn.AddSet(set, nil); err != nil {
		return err
	}
	for elements := range slices.Chunk(intervals(ports), elementsAtOnce) {
		if err := conn.SetAddElements(set, elements); err != nil {
			return err
		}
		if err := conn.Flush(); err != nil {
			return err
		}
	}
	return conn.Flush()
}

// intervals returns the elements of an interval set: where each range begins
// and, except at the last port, where it has ended.
func intervals(ports detector.PortSet) []nftables.SetElement {
	var all []nftables.SetElement
	for _, r := range ports.Ranges() {
		all = append(all, nftables.SetElement{Key: portBytes(r.First)})
		if r.Last < math.MaxUint16 {
			all = append(all, nftables.SetElement{Key: portBytes(r.Last + 1), IntervalEnd: true})
		}
	}
	return all
}

func portBytes(port uint16) []byte { return binary.BigEndian.AppendUint16(nil, port) }

// ruleset adds the chains and rules that the top of this file shows.
type ruleset struct {
	conn           *nftables.Conn
	table          *nftables.Table
	tcp, udp, sent *nftables.Set
}

func (r *ruleset) take(listeners []Listener) {
	chain := r.chain("take", nftables.ChainHookPrerouting)
	r.add(chain, meta(expr.MetaKeyIIFTYPE, uint16Bytes(unix.ARPHRD_LOOPBACK)), accept)
	r.add(chain, addressType(&expr.Fib{FlagDADDR: true}, expr.CmpOpNeq), accept)
	r.add(chain, socket(expr.SocketKeyTransparent, expr.CmpOpEq, 0), accept)
	r.add(chain, socket(expr.SocketKeyWildcard, expr.CmpOpLte, 1), accept)
	r.add(chain, port(detector.UDP, targetPort), in(r.sent), accept)
	for _, l := range listeners {
		r.add(chain, family(l.Addr.Addr()), port(l.Proto, targetPort), in(r.ports(l.Proto)), tproxy(l.Addr))
	}
}

func (r *ruleset) remember() {
	chain := r.chain("remember", nftables.ChainHookPostrouting)
	r.add(chain, meta(expr.MetaKeyPRIORITY, uint32Bytes(Quiet)), accept)
	r.add(chain, addressType(&expr.Fib{FlagSADDR: true}, expr.CmpOpEq),
		port(detector.UDP, sourcePort), in(r.udp), update(r.sent))
}

func (r *ruleset) ports(proto detector.Proto) *nftables.Set {
	if proto == detector.TCP {
		return r.tcp
	}
	return r.udp
}

func (r *ruleset) chain(name string, hook *nftables.ChainHook) *nftables.Chain {
	return r.conn.AddChain(&nftables.Chain{
		Name: name, Table: r.table, Type: nftables.ChainTypeFilter,
		Hooknum: hook, Priority: nftables.ChainPriorityConntrackHelper,
	})
}

func (r *ruleset) add(chain *nftables.Chain, parts ...[]expr.Any) {
	r.conn.AddRule(&nftables.Rule{Table: r.table, Chain: chain, Exprs: slices.Concat(parts...)})
}

// Parts of rules. They use registers 1 and 2, and keep nothing in them.

var accept = []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}

func meta(key expr.MetaKey, value []byte) []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: value},
	}
}

func family(addr netip.Addr) []expr.Any {
	if addr.Is4() {
		return meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV4})
	}
	return meta(expr.MetaKeyNFPROTO, []byte{unix.NFPROTO_IPV6})
}

// addressType compares the type of an address with local.
func addressType(address *expr.Fib, op expr.CmpOp) []expr.Any {
	address.ResultADDRTYPE, address.Register = true, 1
	return []expr.Any{address, &expr.Cmp{Op: op, Register: 1, Data: uint32Bytes(unix.RTN_LOCAL)}}
}

// socket looks for the socket that the packet would come to. Without one, or
// with one that does not have the key, the rule does not apply.
func socket(key expr.SocketKey, op expr.CmpOp, value byte) []expr.Any {
	return []expr.Any{
		&expr.Socket{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: []byte{value}},
	}
}

// Where TCP and UDP have their ports.
const sourcePort, targetPort = 0, 2

// port loads a port into register 1.
func port(proto detector.Proto, offset uint32) []expr.Any {
	return append(meta(expr.MetaKeyL4PROTO, []byte{byte(proto)}), &expr.Payload{
		Base: expr.PayloadBaseTransportHeader, Offset: offset, Len: 2, DestRegister: 1,
	})
}

// in looks register 1 up.
func in(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Lookup{SourceRegister: 1, SetName: set.Name, SetID: set.ID}}
}

// update puts register 1 into a set, or has it stay there for longer.
func update(set *nftables.Set) []expr.Any {
	return []expr.Any{&expr.Dynset{SrcRegKey: 1, SetName: set.Name, SetID: set.ID, Operation: unix.NFT_DYNSET_OP_UPDATE}}
}

func tproxy(to netip.AddrPort) []expr.Any {
	proto := byte(unix.NFPROTO_IPV4)
	if to.Addr().Is6() {
		proto = unix.NFPROTO_IPV6
	}
	return []expr.Any{
		&expr.Immediate{Register: 1, Data: to.Addr().AsSlice()},
		&expr.Immediate{Register: 2, Data: portBytes(to.Port())},
		&expr.TProxy{Family: proto, RegAddr: 1, RegPort: 2},
	}
}

func uint16Bytes(v uint16) []byte { return binary.NativeEndian.AppendUint16(nil, v) }
func uint32Bytes(v uint32) []byte { return binary.NativeEndian.AppendUint32(nil, v) }
