package main

import (
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// A proxy stands between clients and the database server, to cut their connections.
type proxy struct {
	listener net.Listener
	target   string

	mu    sync.Mutex // protects links
	links map[*link]struct{}
	wg    sync.WaitGroup
}

// A link is a connection through the proxy.
type link struct {
	client, server net.Conn
	stalled        chan struct{} // nothing is forwarded any more once it is closed
	once           sync.Once
}

func newProxy(target string) (*proxy, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &proxy{listener: l, target: target, links: map[*link]struct{}{}}
	p.wg.Go(p.accept)
	return p, nil
}

func (p *proxy) address() string { return p.listener.Addr().String() }

func (p *proxy) accept() {
	for {
		client, err := p.listener.Accept()
		if err != nil {
			return // closed
		}
		p.wg.Go(func() { p.serve(client) })
	}
}

func (p *proxy) serve(client net.Conn) {
	defer client.Close()
	server, err := net.DialTimeout("tcp4", p.target, 5*time.Second)
	if err != nil {
		return
	}
	l := &link{client: client, server: server, stalled: make(chan struct{})}
	p.mu.Lock()
	p.links[l] = struct{}{}
	p.mu.Unlock()
	var wg sync.WaitGroup
	wg.Go(func() { l.forward(server, client) })
	wg.Go(func() { l.forward(client, server) })
	wg.Wait()
	p.mu.Lock()
	delete(p.links, l)
	p.mu.Unlock()
}

// forward copies until either side ends the connection, and then ends both. What comes while it is stalled is thrown away: a
// statement must not arrive when its caller has long gone.
func (l *link) forward(to, from net.Conn) {
	defer l.close()
	buffer := make([]byte, 32<<10)
	for {
		n, err := from.Read(buffer)
		select {
		case <-l.stalled:
			_, _ = io.Copy(io.Discard, from)
			return
		default:
		}
		if _, writeErr := to.Write(buffer[:n]); err != nil || writeErr != nil {
			return
		}
	}
}

func (l *link) close() {
	l.client.Close()
	l.server.Close()
}

// cut ends a share of the connections, at once or after they were silent for a while, and returns how many.
func (p *proxy) cut(rng *rand.Rand, share float64) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	n := 0
	for l := range p.links {
		if rng.Float64() >= share {
			continue
		}
		n++
		if rng.IntN(2) == 0 {
			l.close()
			continue
		}
		l.once.Do(func() { close(l.stalled) })
		time.AfterFunc(time.Duration(rng.Int64N(int64(2*time.Second))), l.close)
	}
	return n
}

// stop ends all connections, and waits for that.
func (p *proxy) stop() {
	p.listener.Close()
	p.mu.Lock()
	for l := range p.links {
		l.close()
	}
	p.mu.Unlock()
	p.wg.Wait()
}
