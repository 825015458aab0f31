package names

import (
	"context"
	"io"
	"net"
)

// maxAnswer is the most bytes that are read of an answer over TCP. It may have
// 65,535 and thousands of names; one that does not fit is of no use in a line.
const maxAnswer = 4096

// systemLookup asks /etc/hosts and the name servers of /etc/resolv.conf.
var systemLookup = lookupThrough(new(net.Dialer).DialContext)

// lookupThrough returns a lookup that reaches name servers by dial.
func lookupThrough(dial func(ctx context.Context, network, server string) (net.Conn, error)) func(context.Context, string) ([]string, error) {
	// Go's own resolver: the C library's cannot be given up before its time.
	r := net.Resolver{PreferGo: true}
	r.Dial = func(ctx context.Context, network, server string) (net.Conn, error) {
		c, err := dial(ctx, network, server)
		if err != nil {
			return nil, err
		}
		// The resolver heeds the deadline of ctx but not its end. It ends ctx
		// itself after each exchange, so this leaves nothing behind.
		context.AfterFunc(ctx, func() { c.Close() })
		if _, ok := c.(net.PacketConn); ok {
			return c, nil
		}
		return &stream{Conn: c, read: io.LimitReader(c, maxAnswer)}, nil
	}
	return r.LookupAddr
}

// A stream is a connection of which only so much is read.
type stream struct {
	net.Conn
	read io.Reader
}

// Read reads up to the limit and then reports the end of the connection.
func (s *stream) Read(p []byte) (int, error) { return s.read.Read(p) }
