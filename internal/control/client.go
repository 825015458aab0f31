package control

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"syscall"
	"time"
)

// A Client talks to the daemon at a socket.
type Client struct {
	socket string
	http   http.Client
}

// clientTimeout is how long a request may take; commands that ban may be slow.
const clientTimeout = 60 * time.Second

// maxAnswer bounds what a client reads: twice the largest answer there can be.
const maxAnswer = 64 << 20

// NewClient returns a client for the daemon that listens at socket.
func NewClient(socket string) *Client {
	dial := func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", socket)
	}
	return &Client{socket: socket, http: http.Client{
		Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true},
		Timeout:   clientTimeout,
	}}
}

// Status asks how the daemon is.
func (c *Client) Status(ctx context.Context) (s Status, err error) {
	return s, c.do(ctx, http.MethodGet, "status", nil, &s)
}

// Bans asks for the bans in force.
func (c *Client) Bans(ctx context.Context) (bans []Ban, err error) {
	return bans, c.do(ctx, http.MethodGet, "bans", nil, &bans)
}

// Ban asks for a ban.
func (c *Client) Ban(ctx context.Context, r BanRequest) (ban Ban, err error) {
	return ban, c.do(ctx, http.MethodPost, "bans", r, &ban)
}

// Unban lifts the bans of prefix and of everything inside it.
func (c *Client) Unban(ctx context.Context, prefix netip.Prefix) (lifted []Ban, err error) {
	return lifted, c.do(ctx, http.MethodDelete, "bans/"+prefix.String(), nil, &lifted)
}

// Allowed asks who is never banned.
func (c *Client) Allowed(ctx context.Context) (all []Allowed, err error) {
	return all, c.do(ctx, http.MethodGet, "allowed", nil, &all)
}

// Allow has a prefix never banned, and returns the bans that this lifted.
func (c *Client) Allow(ctx context.Context, r AllowRequest) (lifted []Ban, err error) {
	return lifted, c.do(ctx, http.MethodPost, "allowed", r, &lifted)
}

// Disallow takes back what Allow did.
func (c *Client) Disallow(ctx context.Context, r AllowRequest) error {
	return c.do(ctx, http.MethodDelete, "allowed/"+r.Prefix.String(), nil, new(struct{}))
}

// Outputs asks how the outputs are.
func (c *Client) Outputs(ctx context.Context) (all []Output, err error) {
	return all, c.do(ctx, http.MethodGet, "outputs", nil, &all)
}

// do sends a request and reads the answer.
func (c *Client) do(ctx context.Context, method, path string, body, into any) error {
	var sent io.Reader
	if body != nil {
		text, err := json.Marshal(body)
		if err != nil {
			return err
		}
		sent = bytes.NewReader(text)
	}
	address := url.URL{Scheme: "http", Host: "portsnared", Path: "/v1/" + path}
	request, err := http.NewRequestWithContext(ctx, method, address.String(), sent)
	if err != nil {
		return err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return c.explain(err)
	}
	defer response.Body.Close()
	decoder := json.NewDecoder(io.LimitReader(response.Body, maxAnswer))
	if response.StatusCode != http.StatusOK {
		fault := new(Error)
		if err := decoder.Decode(fault); err != nil || fault.Text == "" {
			return fmt.Errorf("the daemon at %s answered %s", c.socket, response.Status)
		}
		return fault
	}
	if err := decoder.Decode(into); err != nil {
		return fmt.Errorf("answer of the daemon at %s: %w", c.socket, err)
	}
	return nil
}

// explain says what to do when there is no answer.
func (c *Client) explain(err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no daemon listens at %s; is portsnared running?", c.socket)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("may not use %s; be root, or a member of the group %s", c.socket, group)
	}
	if fault, ok := errors.AsType[*url.Error](err); ok {
		err = fault.Err // without the address, which is made up
	}
	return fmt.Errorf("ask the daemon at %s: %w", c.socket, err)
}
